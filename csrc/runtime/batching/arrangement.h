// SPDX-License-Identifier: Apache-2.0
// Orders of variables under which chosen operands of batches are consecutive and aligned (ED-Batch, section 3).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "pq_tree.h"

namespace edgeops::batching {

// Variables that must be consecutive, and in the same relative order as the other operands of the same batch.
struct Operand {
  int32_t batch;
  std::vector<int32_t> variables;  // different ones
};

class Arrangement {
 public:
  Arrangement(int32_t variables, int32_t batches) : tree_(variables), operands_(batches) {}

  // Demands one more operand in place. False: no order has it together with those before, and this object is spent.
  bool add(const Operand& operand) {
    return demand(operand) && close();
  }

  // The same in two steps, for several operands at once: first all demands, then one close.
  bool demand(const Operand& operand);
  bool close();

  // An order with all operands in place; after close().
  std::vector<int32_t> order() const;

  // Elementary steps so far, a measure of time that is the same on every machine.
  int64_t steps() const {
    return steps_;
  }

 private:
  using Nodes = std::vector<int32_t>;

  // How two nodes of equal structure lie to one another: a Q node forward or reversed; of a P node, to which child of
  // the second each child of the first corresponds.
  struct Pairing {
    int32_t first;
    int32_t second;
    bool reversed;
    Nodes permutation;  // empty for Q nodes
  };
  // Each node's order follows from its parent's; roots are free.
  struct Follow {
    int32_t parent = -1;
    bool reversed = false;
    Nodes permutation;
  };
  // A node seen from a root: order(node) = permutation of order(root), or order(root) reversed or not.
  struct Relation {
    int32_t root;
    bool reversed;
    Nodes permutation;
  };

  bool equalise();
  bool orient();
  bool link(const Pairing& pairing);
  Relation relation(int32_t node) const;
  bool match(const Nodes& first, const Nodes& second, const std::function<bool(const Pairing&)>& visit);
  bool pair(int32_t first, const Nodes& left, int32_t second, const Nodes& right, Pairing& pairing) const;
  std::vector<Nodes> constraints(const Nodes& operand);
  PQTree::Reduced impose(const std::vector<Nodes>& positions, const Nodes& operand);
  void write_keys(const Nodes& operand, Nodes& keys);

  PQTree tree_;
  std::vector<std::vector<Nodes>> operands_;  // per batch
  std::vector<Follow> follow_;                // per node
  Nodes keys_[2];                             // per node: the smallest position of the operand below it
  int64_t steps_ = 0;
};

}  // namespace edgeops::batching
