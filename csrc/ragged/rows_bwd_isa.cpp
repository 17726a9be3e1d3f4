// SPDX-License-Identifier: Apache-2.0
// The backward row kernels for every instruction set.
#include "../common/simd.h"
#include "rows_bwd.h"

namespace edgeops::ragged {

#define EDGEOPS_INNER "../ragged/rows_bwd.inl.h"
#define EDGEOPS_ROW(St)                                                                               \
  {bias_gelu_bwd_rows<St>, add_layer_norm_bwd_rows<St>, add_columns_of_blocks<St>, pool_bwd_rows<St>, \
   pool_shared_bwd_rows<St>}
#define EDGEOPS_TABLE                             \
  extern const RowBackwardKernels kRowsBwd[4] = { \
      EDGEOPS_ROW(StoreF32),                      \
      EDGEOPS_ROW(StoreF64),                      \
      EDGEOPS_ROW(StoreF16),                      \
      EDGEOPS_ROW(StoreBf16),                     \
  };
#include "../common/each_isa.inl.h"

const RowBackwardKernels& row_backward_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kRowsBwd)[static_cast<int>(storage)];
}

}  // namespace edgeops::ragged
