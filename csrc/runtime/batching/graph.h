// SPDX-License-Identifier: Apache-2.0
// A dynamic graph of cell calls and a batched order of them.
#pragma once

#include <cstdint>
#include <vector>

namespace edgeops::batching {

// Nodes arrive in topological order: arguments before consumers.
struct Graph {
  int32_t types = 0;
  std::vector<int32_t> type;       // [V]
  std::vector<int64_t> arg_start;  // [V + 1]
  std::vector<int32_t> args;       // node ids, each below its consumer; duplicates allowed
  std::vector<uint8_t> lone;       // [types]: 1 = may not be batched, runs singly
  std::vector<int32_t> depth;      // [V], as recorded: above that of arguments of the same phase; or empty
  std::vector<int32_t> phase;      // [V], none below that of an argument; or empty: all are of one phase

  int64_t nodes() const {
    return static_cast<int64_t>(type.size());
  }
};

// Batch i = order[start[i] : start[i + 1]], all of one type.
struct Schedule {
  std::vector<int32_t> order;  // [V] nodes
  std::vector<int64_t> start;  // [batches + 1]

  int64_t batches() const {
    return static_cast<int64_t>(start.size()) - 1;
  }
};

}  // namespace edgeops::batching
