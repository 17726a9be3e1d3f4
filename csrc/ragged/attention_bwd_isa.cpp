// SPDX-License-Identifier: Apache-2.0
// The inner loops of the backward of ragged attention for every instruction set.
#include "attention_bwd_isa.h"

#include "../common/simd.h"

namespace edgeops::ragged {

#define EDGEOPS_INNER "../ragged/attention_bwd.inl.h"
#define EDGEOPS_TABLE                                           \
  extern const AttentionGradKernel kAttentionGrad[4] = {        \
      {grad_scratch<StoreF32>, attention_grad_run<StoreF32>},   \
      {grad_scratch<StoreF64>, attention_grad_run<StoreF64>},   \
      {grad_scratch<StoreF16>, attention_grad_run<StoreF16>},   \
      {grad_scratch<StoreBf16>, attention_grad_run<StoreBf16>}, \
  };
#include "../common/each_isa.inl.h"

const AttentionGradKernel& attention_grad_kernel(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kAttentionGrad)[static_cast<int>(storage)];
}

}  // namespace edgeops::ragged
