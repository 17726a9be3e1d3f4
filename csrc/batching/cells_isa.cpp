// SPDX-License-Identifier: Apache-2.0
// The inner loops of cells and of sums of rows for every instruction set.
#include "../common/simd.h"
#include "cells.h"

namespace edgeops::batching {

#define EDGEOPS_INNER "../batching/cells.inl.h"
#define EDGEOPS_CELLS(St)                                                                                          \
  {                                                                                                                \
    {                                                                                                              \
      lstm_fwd<St>, lstm_bwd<St>, treelstm_fwd<St>, treelstm_bwd<St>, leaf_fwd<St>, leaf_bwd<St>, gru_fwd<St>,     \
          gru_bwd<St>, reset_fwd<St>, reset_bwd<St>, treegru_fwd<St>, treegru_bwd<St>, tanh_fwd<St>, tanh_bwd<St>, \
          sigmoid_fwd<St>, sigmoid_bwd<St>, relu_fwd<St>, relu_bwd<St>                                             \
    }                                                                                                              \
  }
#define EDGEOPS_TABLE                                                                                       \
  extern const CellKernels kCells[4] = {                                                                    \
      EDGEOPS_CELLS(StoreF32), EDGEOPS_CELLS(StoreF64), EDGEOPS_CELLS(StoreF16), EDGEOPS_CELLS(StoreBf16)}; \
  extern const RowsSumRun kRowsSum[4] = {                                                                   \
      rows_sum<StoreF32>, rows_sum<StoreF64>, rows_sum<StoreF16>, rows_sum<StoreBf16>};                     \
  extern const CrossEntropyRun kCrossEntropy[2][4] = {                                                      \
      {cross_entropy_fwd<StoreF32>, cross_entropy_fwd<StoreF64>, cross_entropy_fwd<StoreF16>,               \
       cross_entropy_fwd<StoreBf16>},                                                                       \
      {cross_entropy_bwd<StoreF32>, cross_entropy_bwd<StoreF64>, cross_entropy_bwd<StoreF16>,               \
       cross_entropy_bwd<StoreBf16>}};
#include "../common/each_isa.inl.h"

const CellKernels& cell_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kCells)[static_cast<int>(storage)];
}

RowsSumRun rows_sum_kernel(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kRowsSum)[static_cast<int>(storage)];
}

CrossEntropyRun cross_entropy_kernel(Isa isa, Storage storage, bool backward) {
  return EDGEOPS_PICK(isa, kCrossEntropy)[backward ? 1 : 0][static_cast<int>(storage)];
}

}  // namespace edgeops::batching
