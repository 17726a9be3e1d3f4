// SPDX-License-Identifier: Apache-2.0
// Batches inside a static cell: the fewest, and among those the ones with the best layout (ED-Batch, section 3).
#pragma once

#include <cstdint>
#include <vector>

#include "layout.h"

namespace edgeops::batching {

// Operations 0..V-1, each after its arguments. An argument is an operation, an input that is laid out with the
// variables (V..V+inputs-1), or external (see layout.h).
struct Cell {
  int32_t inputs = 0;
  std::vector<int32_t> type;  // operations of one type may run together; equal numbers of arguments
  std::vector<std::vector<int32_t>> args;
};

struct CellPlan {
  std::vector<std::vector<int32_t>> batches;  // operations in the order they run
  Layout layout;
  bool fewest = false;  // proven: no sequence of types has fewer batches
};

// `effort` bounds the whole search (elementary steps).
CellPlan plan_cell(const Cell& cell, int64_t effort);

}  // namespace edgeops::batching
