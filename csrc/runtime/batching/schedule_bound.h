// SPDX-License-Identifier: Apache-2.0
// The lower bound of what is left of a graph, kept up to date while the graph runs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "schedule_frontier.h"

namespace edgeops::batching {

// For a node of type a: the longest chain of a-nodes from it down to its consumers, itself included. Its maximum over a
// type is Depth(G^a). Lone nodes have height 1.
struct TypedHeights {
  TypedHeights(const Graph& graph, const Links& links);

  std::vector<int32_t> height;  // [V]
  std::vector<int64_t> bound;   // [types]: Depth(G^type), or for lone types the number of nodes
};

// Depth(G^a) of what has not run, for every a: nodes are counted by height. Lone nodes are left out.
class RemainingBound {
 public:
  RemainingBound(const Graph& graph, const TypedHeights& heights);

  int64_t total() const {
    return total_;
  }
  // Whether running the ready nodes of the type lowers the bound, by one then: below the top every height has a node
  // that waits for one above. Between two runs of the type `ready` may only grow.
  bool lowered_by(int32_t type, std::span<const int32_t> ready);

  void ran(int32_t type, std::span<const int32_t> batch);

 private:
  struct Seen {
    int64_t nodes = 0, at_top = 0;
  };
  const TypedHeights* heights_;
  std::vector<int64_t> base_;
  std::vector<int32_t> top_;
  std::vector<int32_t> count_;
  std::vector<Seen> seen_;  // of the ready nodes of each type
  int64_t total_ = 0;
};

}  // namespace edgeops::batching
