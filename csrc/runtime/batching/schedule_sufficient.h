// SPDX-License-Identifier: Apache-2.0
// |Frontier(G^a)| for every type a, kept up to date while the graph runs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "schedule_frontier.h"

namespace edgeops::batching {

// G^a: the nodes of type a that have not run, with an edge wherever one reaches another. Its frontier is every such
// node without an a-typed ancestor. Only types that reach themselves need counters: for any other type G^a has no edge.
class TypedFrontiers {
 public:
  // From any state of the frontier on, not only the first.
  TypedFrontiers(const Graph& graph, const Links& links, const Frontier& frontier);

  int64_t size(int32_t type, const Frontier& frontier) const {
    const int32_t k = slot_[type];
    return k < 0 ? frontier.left(type) : size_[k];
  }
  // Whether every node of G^type without an ancestor is ready: running it now is part of some optimal schedule.
  bool safe(int32_t type, const Frontier& frontier) const {
    return frontier.ready_count(type) == size(type, frontier);
  }
  // Of these active types the one with the largest share of its typed frontier ready; ties: more ready nodes, then the
  // smaller type.
  int32_t best(const Frontier& frontier, std::span<const int32_t> types) const;

  void ran(int32_t type, std::span<const int32_t> batch);

 private:
  template <class Counter>
  void fill(const Frontier& frontier, std::vector<Counter>& blocked);
  template <class Counter>
  void unblock(int32_t type, std::span<const int32_t> batch, Counter* blocked);

  const Graph* graph_;
  const Links* links_;
  std::vector<int32_t> self_reaching_;
  std::vector<int32_t> slot_;  // [types]: index among the self-reaching types, or -1
  std::vector<int64_t> size_;  // a self-reaching type
  // [self-reaching types, V]: arguments that are, or come after, a node of the type that has not run. Kept for nodes
  // that come before such a node or are one; 0 elsewhere.
  std::vector<uint16_t> narrow_;
  std::vector<uint32_t> wide_;  // in its place where a node has 65536 arguments or more
  std::vector<int32_t> stack_;
};

}  // namespace edgeops::batching
