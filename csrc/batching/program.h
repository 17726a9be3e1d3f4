// SPDX-License-Identifier: Apache-2.0
// Programs of cells: what the batches of a flush do, as arrays of integers that one op runs without Python in between.
// edgeops/batching/_program.py writes them, edgeops/batching/_reference_batches.py is the readable twin.
#pragma once

#include <cstdint>

namespace edgeops::batching {

// `code` begins with the number of types, whether rows are kept for backward and whether listed rows of operands are
// copied together before they are read (an ablation: kernels read them where they stand), then six numbers a type: the
// first of its tensors and where its sections begin (-1: none). A section is its length, then instructions: length,
// Step, arguments. Places, five integers each, name a matrix of one row a call; tensors are counted from the type's
// first one, -1 is none.
constexpr int64_t kHead = 3;
constexpr int64_t kSections = 5;
constexpr int64_t kTypeHead = 1 + kSections;

enum class Section : int64_t {
  forward = 0,           // of a batch
  backward = 1,          // of a batch
  finish = 2,            // over all calls of a type, after the last backward
  prepare_forward = 3,   // once a type, before its first batch; of types in place of batches
  prepare_backward = 4,  // the same before backward
};

enum class Step : int64_t {
  linear = 0,          // out, weight, bias, parts, places:  out = [places] weight^T + bias
  linear_add = 1,      // to, room, weight, parts, places:   to += [places] weight^T, through room; nothing without `to`
  cell = 2,            // Cell, h, places, places:           a pointwise cell of states h wide
  add = 3,             // to, from:                          to += from; nothing without `to`
  copy = 4,            // to, from:                          to = from
  sum = 5,             // to, list:                          to = the sums of the lists
  spread = 6,          // to, from:                          every member of a list += the row of its list
  weight_grad = 7,     // grad, dweight, dbias, fresh, parts, places: dweight += grad^T [places], dbias += column sums;
                       // fresh: 1 where dweight, 2 where dbias holds nothing yet, or their sum
  pack = 8,            // to, parts, (weight, first column, columns, turned) each: weights side by side, in panels
  bias = 9,            // to, parts, biases: their sum, in the compute dtype, zeros up to the end of the last panel
  cross_entropy = 10,  // scores, loss, slot: the loss of rows of scores by an integer operand; scores become
                       // probabilities
  cross_entropy_grad = 11,  // dscores, probabilities, dloss, slot
  linear_on = 12,           // out, weight, parts, places: out += [places] weight^T; out is dense
  decide = 13,              // scores, loss, slot: -log of the probability of decisions, summed over the columns; the
                            // integer operands from `slot` on tell whether they were taken, one a column
  decide_grad = 14          // dscores, scores, dloss, slot: added to dscores; nothing without
};

// A place: kind, operand or result, tensor, first column, columns (-1: all).
enum class Where : int64_t {
  operand = 0,    // rows of an operand
  result = 1,     // rows of a result
  d_operand = 2,  // gradients of an operand; none for a tensor that wants none
  d_result = 3,   // gradients of a result
  kept = 4,       // rows of a tensor that keeps one row for every call of the type
  d_kept = 5,     // the same for gradients: zeros for batches that no gradient reaches
  room = 6,       // the first rows of a tensor, for this batch only
  named = 7       // rows of a tensor by an integer operand
};
constexpr int64_t kPlace = 5;

// `classes`, four numbers a value class: tensors of its values, gradients, tensors from outside, and their gradients.
constexpr int64_t kClass = 4;

}  // namespace edgeops::batching
