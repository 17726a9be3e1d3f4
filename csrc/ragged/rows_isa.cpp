// SPDX-License-Identifier: Apache-2.0
// The row kernels for every instruction set.
#include "../common/simd.h"
#include "rows.h"

namespace edgeops::ragged {

#define EDGEOPS_INNER "../ragged/rows.inl.h"
#define EDGEOPS_TABLE                                                                    \
  extern const RowKernels kRows[4] = {                                                   \
      {bias_gelu_rows<StoreF32>, add_layer_norm_rows<StoreF32>, pool_rows<StoreF32>},    \
      {bias_gelu_rows<StoreF64>, add_layer_norm_rows<StoreF64>, pool_rows<StoreF64>},    \
      {bias_gelu_rows<StoreF16>, add_layer_norm_rows<StoreF16>, pool_rows<StoreF16>},    \
      {bias_gelu_rows<StoreBf16>, add_layer_norm_rows<StoreBf16>, pool_rows<StoreBf16>}, \
  };
#include "../common/each_isa.inl.h"

const RowKernels& row_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kRows)[static_cast<int>(storage)];
}

}  // namespace edgeops::ragged
