// SPDX-License-Identifier: Apache-2.0
// The inner loops of variable-size products for every instruction set.
#include "../common/simd.h"
#include "gemm.h"

namespace edgeops::ragged {

#define EDGEOPS_INNER "../ragged/gemm.inl.h"
#define EDGEOPS_TABLE \
  extern const GemmRun kGemm[4] = {gemm_run<StoreF32>, gemm_run<StoreF64>, gemm_run<StoreF16>, gemm_run<StoreBf16>};
#include "../common/each_isa.inl.h"

GemmRun gemm_kernel(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kGemm)[static_cast<int>(storage)];
}

}  // namespace edgeops::ragged
