// SPDX-License-Identifier: Apache-2.0
// The inner loops of ragged attention for every instruction set.
#include "attention_isa.h"

#include "../common/simd.h"

namespace edgeops::ragged {

#define EDGEOPS_INNER "../ragged/attention.inl.h"
#define EDGEOPS_TABLE                                           \
  extern const AttentionKernel kAttention[4] = {                \
      {attention_scratch<StoreF32>, attention_run<StoreF32>},   \
      {attention_scratch<StoreF64>, attention_run<StoreF64>},   \
      {attention_scratch<StoreF16>, attention_run<StoreF16>},   \
      {attention_scratch<StoreBf16>, attention_run<StoreBf16>}, \
  };
#include "../common/each_isa.inl.h"

const AttentionKernel& attention_kernel(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kAttention)[static_cast<int>(storage)];
}

}  // namespace edgeops::ragged
