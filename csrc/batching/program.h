// SPDX-License-Identifier: Apache-2.0
// Programs of cells: what the batches of a flush do, as arrays of integers that one op runs without Python in between.
// edgeops/batching/_program.py writes them, edgeops/batching/_reference_batches.py is the readable twin.
#pragma once

#include <cstdint>

namespace edgeops::batching {

// `code` begins with the number of types and whether rows are kept for backward, then four numbers a type: the first
// of its tensors and where its three sections begin (-1: none). A section is its length, then instructions: length,
// Step, arguments. Places, five integers each, name a matrix of one row a call; tensors are counted from the type's
// first one, -1 is none.
constexpr int64_t kHead = 2;
constexpr int64_t kTypeHead = 4;

enum class Section : int64_t { forward = 0, backward = 1, finish = 2 };

enum class Step : int64_t {
  linear = 0,      // out, weight, bias, parts, places:  out = [places] weight^T + bias
  linear_add = 1,  // to, room, weight, parts, places:   to += [places] weight^T, through room; nothing without `to`
  cell = 2,        // Cell, h, places, places:           a pointwise cell of states h wide
  add = 3,         // to, from:                          to += from; nothing without `to`
  copy = 4,        // to, from:                          to = from
  sum = 5,         // to, list:                          to = the sums of the lists
  spread = 6,      // to, from:                          every member of a list += the row of its list
  weight_grad = 7  // grad, dweight, dbias, parts, places: dweight += grad^T [places], dbias += column sums
};

// A place: kind, operand or result, tensor, first column, columns (-1: all).
enum class Where : int64_t {
  operand = 0,   // rows of an operand
  result = 1,    // rows of a result
  d_operand = 2, // gradients of an operand; none for a tensor that wants none
  d_result = 3,  // gradients of a result
  kept = 4,      // rows of a tensor that keeps one row for every call of the type
  d_kept = 5,    // the same for gradients: zeros for batches that no gradient reaches
  room = 6,      // the first rows of a tensor, for this batch only
  named = 7      // rows of a tensor by an integer operand
};
constexpr int64_t kPlace = 5;

// `classes`, four numbers a value class: tensors of its values, gradients, tensors from outside, and their gradients.
constexpr int64_t kClass = 4;

}  // namespace edgeops::batching
