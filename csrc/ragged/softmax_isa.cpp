// SPDX-License-Identifier: Apache-2.0
// The softmax kernels for every instruction set.
#include "../common/simd.h"
#include "softmax.h"

namespace edgeops::ragged {

#define EDGEOPS_INNER "../ragged/softmax.inl.h"
#define EDGEOPS_TABLE                                                      \
  extern const SoftmaxKernels kSoftmax[4] = {                              \
      {softmax_forward_rows<StoreF32>, softmax_backward_rows<StoreF32>},   \
      {softmax_forward_rows<StoreF64>, softmax_backward_rows<StoreF64>},   \
      {softmax_forward_rows<StoreF16>, softmax_backward_rows<StoreF16>},   \
      {softmax_forward_rows<StoreBf16>, softmax_backward_rows<StoreBf16>}, \
  };
#include "../common/each_isa.inl.h"

const SoftmaxKernels& softmax_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kSoftmax)[static_cast<int>(storage)];
}

}  // namespace edgeops::ragged
