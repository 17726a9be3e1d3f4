// SPDX-License-Identifier: Apache-2.0
// The normalisation kernels for every instruction set.
#include "../common/simd.h"
#include "norm.h"

namespace edgeops::ragged {

#define EDGEOPS_INNER "../ragged/norm.inl.h"
#define EDGEOPS_TABLE                                                              \
  extern const NormKernels kNorm[4] = {                                            \
      {norm_forward<StoreF32>, norm_backward<StoreF32>, norm_add_up<StoreF32>},    \
      {norm_forward<StoreF64>, norm_backward<StoreF64>, norm_add_up<StoreF64>},    \
      {norm_forward<StoreF16>, norm_backward<StoreF16>, norm_add_up<StoreF16>},    \
      {norm_forward<StoreBf16>, norm_backward<StoreBf16>, norm_add_up<StoreBf16>}, \
  };
#include "../common/each_isa.inl.h"

const NormKernels& norm_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kNorm)[static_cast<int>(storage)];
}

}  // namespace edgeops::ragged
