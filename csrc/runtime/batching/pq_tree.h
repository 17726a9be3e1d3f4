// SPDX-License-Identifier: Apache-2.0
// PQ trees (Booth and Lueker, 1976): all orders of n variables in which given sets stay consecutive.
#pragma once

#include <cstdint>
#include <vector>

namespace edgeops::batching {

// Children of a P node may stand in any order, those of a Q node in the given order or its reverse. Nodes with two
// children are Q nodes. An update costs about (set size) x (height): trees here have tens of leaves, so nothing is
// amortised, nothing recurses, and copying a tree is the way to undo.
class PQTree {
 public:
  enum class Kind : uint8_t { kLeaf, kP, kQ };
  enum class Reduced : uint8_t { kImpossible, kUnchanged, kChanged };

  struct Node {
    Kind kind = Kind::kLeaf;
    int32_t parent = -1;
    int32_t leaves = 1;  // below it
    std::vector<int32_t> children;
  };

  // The smallest part of the tree that holds a set: children first..last of a node (a leaf: none).
  struct Span {
    int32_t node = -1;
    int32_t first = 0;
    int32_t last = -1;
  };

  explicit PQTree(int32_t variables);

  // Keeps only orders in which the set (ids in 0..n-1, repeats allowed) is consecutive. Where there is none, the tree
  // stays as it was.
  Reduced reduce(const std::vector<int32_t>& set);

  // One of the orders: children as they stand.
  std::vector<int32_t> frontier() const;

  // For a set of at least one variable. After a successful reduce of it the span covers exactly the set.
  Span span(const std::vector<int32_t>& set) const;

  // All leaves below a node, as they stand.
  std::vector<int32_t> leaves(int32_t node) const;

  int32_t variables() const {
    return variables_;
  }
  int32_t root() const {
    return root_;
  }
  // Nodes 0..n-1 are the leaves; ids of freed inner nodes are reused.
  const Node& node(int32_t id) const {
    return nodes_[id];
  }
  // One more than the largest node id.
  int32_t capacity() const {
    return static_cast<int32_t>(nodes_.size());
  }

 private:
  struct Split;

  int32_t count(const std::vector<int32_t>& set) const;
  int32_t make(Kind kind, std::vector<int32_t> children);
  int32_t group(const std::vector<int32_t>& children);
  void adopt(int32_t parent, std::vector<int32_t> children);
  bool full(int32_t node) const;
  bool partial(int32_t node) const;
  bool split(int32_t node, Split& parts) const;
  bool splits_to_the_end(int32_t node) const;
  std::vector<int32_t> unfold(int32_t node);
  Reduced reduce_p(int32_t node);
  Reduced reduce_q(Span part);
  Span around(int32_t leaf, int32_t size) const;

  int32_t variables_;
  int32_t root_ = -1;
  std::vector<Node> nodes_;
  std::vector<int32_t> free_;
  mutable std::vector<int32_t> inside_;   // leaves of the current set below each node
  mutable std::vector<int32_t> touched_;  // nodes where that is not 0
};

}  // namespace edgeops::batching
