// SPDX-License-Identifier: Apache-2.0
// Products of many sizes in one call, as the ops (gemm.cpp) and the inner loops (gemm.inl.h) see them.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::ragged {

// c[m, n] = a[m, k] b[k, n]. Strides count elements; rows of c are dense.
struct GemmGroup {
  int64_t m, n, k;
  const void* a;
  int64_t a_row, a_col;
  const void* b;
  int64_t b_row, b_col;
  void* c;
  int64_t c_row;
};

// One unit of work: rows [m0, m1) and columns [n0, n1) of one product.
struct GemmPiece {
  int64_t group, m0, m1, n0, n1;
  double cost;  // nanoseconds, roughly
};

// Scratch memory of the calling thread, at least `bytes`, aligned to 64. What slot 0 or 1 gave before is gone.
using Scratch = char* (*)(int slot, int64_t bytes);
using GemmRun = void (*)(const GemmGroup&, const GemmPiece&, Scratch);

GemmRun gemm_kernel(Isa isa, Storage storage);

}  // namespace edgeops::ragged
