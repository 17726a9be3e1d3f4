// SPDX-License-Identifier: Apache-2.0
// Pointwise parts of recurrent and tree cells, as the ops (cells.cpp) and the inner loops (cells.inl.h) see them.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::batching {

// Where row i of an argument lies: rows of a table by number, or row `first` + i of a matrix. Strides count elements.
struct Place {
  void* data;
  int64_t stride;
  const int32_t* rows;
  int64_t first;
};

// Rows [begin, end) of a batch; h is the width of a state, the places are the arguments in the order of the op.
using CellRun = void (*)(const Place* places, int64_t h, int64_t begin, int64_t end);

enum class Cell : int {
  lstm_fwd,
  lstm_bwd,
  treelstm_fwd,
  treelstm_bwd,
  leaf_fwd,
  leaf_bwd,
  gru_fwd,
  gru_bwd,
  reset_fwd,
  reset_bwd,
  treegru_fwd,
  treegru_bwd,
  tanh_fwd,
  tanh_bwd,
  sigmoid_fwd,
  sigmoid_bwd,
  relu_fwd,
  relu_bwd,
  count
};

struct CellKernels {
  CellRun run[static_cast<int>(Cell::count)];
};

const CellKernels& cell_kernels(Isa isa, Storage storage);

// out[i, :] = (out[i, :] if add) + the rows index[starts[i] : starts[i + 1]] of src, in order.
struct RowsSum {
  const void* src;
  int64_t src_row, width;
  const int64_t* starts;
  const int32_t* index;
  int64_t total;  // summands of all lists
  void* out;
  int64_t out_row;
  bool add;
};
using RowsSumRun = void (*)(const RowsSum&, int64_t begin, int64_t end);

RowsSumRun rows_sum_kernel(Isa isa, Storage storage);

// Rows of scores, and the class each belongs to. Forward reads scores, leaves probabilities in their place and writes
// the loss; backward reads probabilities and the loss's gradients and writes those of the scores.
struct CrossEntropy {
  int64_t classes;
  void* scores;
  int64_t scores_row;
  const int32_t* labels;
  void* loss;
  int64_t loss_row;
  void* dscores;
  int64_t dscores_row;
};
using CrossEntropyRun = void (*)(const CrossEntropy&, int64_t begin, int64_t end);

CrossEntropyRun cross_entropy_kernel(Isa isa, Storage storage, bool backward);

// One whole cell, sum or loss of m rows, by all threads.
void run_cell(Cell cell, Storage storage, const Place* places, int64_t m, int64_t h);
void run_rows_sum(const RowsSum& call, int64_t m, Storage storage);
void run_cross_entropy(const CrossEntropy& call, int64_t m, bool backward, Storage storage);

}  // namespace edgeops::batching
