// SPDX-License-Identifier: Apache-2.0
// The row kernels, compiled once per instruction set; see attention_isa.cpp.
#include "../common/simd.h"
#include "rows.h"

namespace edgeops::ragged {

#pragma GCC diagnostic ignored "-Wpsabi"  // vector types never cross a function that is not inlined

#define EDGEOPS_TABLE                                                                    \
  extern const RowKernels kRows[4] = {                                                   \
      {bias_gelu_rows<StoreF32>, add_layer_norm_rows<StoreF32>, pool_rows<StoreF32>},    \
      {bias_gelu_rows<StoreF64>, add_layer_norm_rows<StoreF64>, pool_rows<StoreF64>},    \
      {bias_gelu_rows<StoreF16>, add_layer_norm_rows<StoreF16>, pool_rows<StoreF16>},    \
      {bias_gelu_rows<StoreBf16>, add_layer_norm_rows<StoreBf16>, pool_rows<StoreBf16>}, \
  };

namespace base {
#define EDGEOPS_VB 16
#define EDGEOPS_F16C 0
#include "../common/convert.inl.h"
#include "../common/vec.inl.h"
#include "rows.inl.h"
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
#include "rows.inl.h"
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
#include "rows.inl.h"
EDGEOPS_TABLE
}  // namespace avx512
#pragma GCC pop_options
#endif

const RowKernels& row_kernels(Isa isa, Storage storage) {
  const int s = static_cast<int>(storage);
#if defined(__x86_64__)
  if (isa == Isa::avx512) {
    return avx512::kRows[s];
  }
  if (isa == Isa::avx2) {
    return avx2::kRows[s];
  }
#endif
  return base::kRows[s];
}

}  // namespace edgeops::ragged
