// SPDX-License-Identifier: Apache-2.0
// Memory layout of a static cell: one order of its variables, so that batched operations find their operands in place.
#pragma once

#include <cstdint>
#include <vector>

namespace edgeops::batching {

// A tensor from outside that is stored as its batch reads it: fused weights. Lower ids are single tensors from outside,
// such as a cell's inputs: equal ids are the same tensor.
constexpr int32_t kExternal = -1;

// Operand o of a batch holds one variable or external id per member of the batch; the result is operand 0.
using Batch = std::vector<std::vector<int32_t>>;

enum class Verdict : uint8_t {
  kInPlace,        // members stand one after another, in the batch's order
  kBroadcast,      // the same tensor for every member: read with stride 0
  kExternal,       // from outside, nothing to lay out
  kCopyExternal,   // different tensors from outside, or variables among them
  kCopyRepeated,   // some, not all, members are the same variable
  kCopyAdjacency,  // the variables are not consecutive
  kCopyAlignment,  // consecutive, but in another order than the batch's operands in place
};

struct Layout {
  std::vector<int32_t> order;                  // [n] variables as they stand in memory
  std::vector<std::vector<int32_t>> members;   // per batch: its members in memory order
  std::vector<std::vector<Verdict>> verdicts;  // per batch and operand
  int64_t copies = 0;                          // operands with a kCopy verdict
  int64_t copied = 0;                          // and their members
  bool minimal = false;                        // proven: no order needs fewer copies
};

// Verdicts of a given order, proven operand by operand. Every input is fine that has equal operand lengths within a
// batch and ids below `variables`.
Layout judge(const std::vector<Batch>& batches, std::vector<int32_t> order);

// The best order found. `effort` bounds the search where not all can be in place (elementary steps).
Layout plan_layout(int32_t variables, const std::vector<Batch>& batches, int64_t effort);

}  // namespace edgeops::batching
