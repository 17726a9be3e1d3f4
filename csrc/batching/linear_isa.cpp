// SPDX-License-Identifier: Apache-2.0
// The inner loops of products with rows of tables for every instruction set.
#include "../common/simd.h"
#include "linear.h"

namespace edgeops::batching {

#define EDGEOPS_INNER "../batching/linear.inl.h"
#define EDGEOPS_LINEAR(St) {linear_run<St>, wgrad_run<St>, pack_run<St>, widen_run<St>}
#define EDGEOPS_TABLE                       \
  extern const LinearKernels kLinear[4] = { \
      EDGEOPS_LINEAR(StoreF32), EDGEOPS_LINEAR(StoreF64), EDGEOPS_LINEAR(StoreF16), EDGEOPS_LINEAR(StoreBf16)};
#include "../common/each_isa.inl.h"

const LinearKernels& linear_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kLinear)[static_cast<int>(storage)];
}

}  // namespace edgeops::batching
