// SPDX-License-Identifier: Apache-2.0
// The convolution kernels for every instruction set.
#include "../common/simd.h"
#include "conv.h"

namespace edgeops::ragged {

#define EDGEOPS_INNER "../ragged/conv.inl.h"
#define EDGEOPS_CONV(St, T)                                                                           \
  {Tile<T>::n,     conv_pack_weight<T>, conv_forward<T>, conv_weight_grad<T>, conv_weight_scratch<T>, \
   conv_widen<St>, conv_narrow<St>}
#define EDGEOPS_TABLE                                                                               \
  extern const ConvKernels kConv[4] = {                                                             \
      EDGEOPS_CONV(StoreF32, float), EDGEOPS_CONV(StoreF64, double), EDGEOPS_CONV(StoreF16, float), \
      EDGEOPS_CONV(StoreBf16, float)};
#include "../common/each_isa.inl.h"

const ConvKernels& conv_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kConv)[static_cast<int>(storage)];
}

}  // namespace edgeops::ragged
