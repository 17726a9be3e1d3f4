// SPDX-License-Identifier: Apache-2.0
// The inner loops of ragged attention, compiled once per instruction set: baseline outside, wide code behind a run-time
// check (csrc/common/isa.h).
#include "attention_isa.h"

#include "../common/simd.h"

namespace edgeops::ragged {

#pragma GCC diagnostic ignored "-Wpsabi"  // vector types never cross a function that is not inlined

#define EDGEOPS_TABLE                                           \
  extern const AttentionKernel kAttention[4] = {                \
      {attention_scratch<StoreF32>, attention_run<StoreF32>},   \
      {attention_scratch<StoreF64>, attention_run<StoreF64>},   \
      {attention_scratch<StoreF16>, attention_run<StoreF16>},   \
      {attention_scratch<StoreBf16>, attention_run<StoreBf16>}, \
  };

namespace base {
#define EDGEOPS_VB 16
#define EDGEOPS_F16C 0
#include "../common/convert.inl.h"
#include "../common/vec.inl.h"
#include "attention.inl.h"
EDGEOPS_TABLE
#undef EDGEOPS_VB
#undef EDGEOPS_F16C
}  // namespace base

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#define EDGEOPS_VB 32
#define EDGEOPS_F16C 1
#include "../common/convert.inl.h"
#include "../common/vec.inl.h"
#include "attention.inl.h"
EDGEOPS_TABLE
#undef EDGEOPS_VB
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512 {
#define EDGEOPS_VB 64
#include "../common/convert.inl.h"
#include "../common/vec.inl.h"
#include "attention.inl.h"
EDGEOPS_TABLE
}  // namespace avx512
#pragma GCC pop_options
#endif

const AttentionKernel& attention_kernel(Isa isa, Storage storage) {
  const int s = static_cast<int>(storage);
#if defined(__x86_64__)
  if (isa == Isa::avx512) {
    return avx512::kAttention[s];
  }
  if (isa == Isa::avx2) {
    return avx2::kAttention[s];
  }
#endif
  return base::kAttention[s];
}

}  // namespace edgeops::ragged
