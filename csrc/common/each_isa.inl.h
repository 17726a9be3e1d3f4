// SPDX-License-Identifier: Apache-2.0
// Compiles inner loops once per instruction set, into namespaces base, avx2 and avx512: baseline code outside, wide
// code entered only after a run-time check (isa.h). Before including this file, inside the subsystem's namespace:
//   #define EDGEOPS_INNER "../ragged/rows.inl.h"   the loops, by path from this folder
//   #define EDGEOPS_TABLE extern const RowKernels kRows[4] = {...};   their table, one entry per storage type
// Afterwards EDGEOPS_PICK(isa, kRows) is the table of that instruction set. "simd.h" must be included before, at the
// top.

#pragma GCC diagnostic ignored "-Wpsabi"  // vector types never cross a function that is not inlined

namespace base {
#define EDGEOPS_VB 16
#define EDGEOPS_F16C 0
#include "vec.inl.h"
//
#include "convert.inl.h"
//
#include EDGEOPS_INNER
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
#include "vec.inl.h"
//
#include "convert.inl.h"
//
#include EDGEOPS_INNER
EDGEOPS_TABLE
#undef EDGEOPS_VB
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512 {
#define EDGEOPS_VB 64
#include "vec.inl.h"
//
#include "convert.inl.h"
//
#include EDGEOPS_INNER
EDGEOPS_TABLE
}  // namespace avx512
#pragma GCC pop_options
#define EDGEOPS_PICK(isa, table) ((isa) == Isa::avx512 ? avx512::table : (isa) == Isa::avx2 ? avx2::table : base::table)
#else
#define EDGEOPS_PICK(isa, table) (base::table)
#endif
