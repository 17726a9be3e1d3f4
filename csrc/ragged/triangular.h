// SPDX-License-Identifier: Apache-2.0
// Kernels on triangles of dense matrices, as the ops (triangular.cpp) see them. CoRa, MLSys 2022, section 5: dense
// storage, ragged loops.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::ragged {

// Which loop of C = alpha * A B is ragged.
enum class Ragged : int {
  reduction,  // A is lower triangular: row i sums over k <= i
  lower,      // only C[i, j <= i] is wanted
  upper,      // only C[i, j >= i] is wanted
};

// Strides count elements and may be negative; columns of c are dense. All matrices are float or double.
struct TriProduct {
  const void *a, *b;
  void* c;
  int64_t a_row, a_col, b_row, b_col, c_row;
  int64_t rows, cols, depth;  // of C and of the reduction
  double alpha;
  Ragged ragged;
};

// One unit of work: C[i0:i1, j0:j1]; the bounds are multiples of a tile, or the end.
struct TriPiece {
  int64_t i0, i1, j0, j1;
  double cost;  // nanoseconds, roughly
};

struct TriKernels {
  // bytes of scratch that a piece needs, and the product
  int64_t (*scratch)(const TriProduct&, const TriPiece&);
  void (*product)(const TriProduct&, const TriPiece&, char* scratch);
  int64_t tile_cols;
  // out[i, j] = a[i, j] + or * b[i, j] on the triangle, 0 elsewhere, for rows [begin, end); rows of a and b dense.
  // `stream`: past the caches; `zeroed`: out holds zeros already
  void (*binary)(
      const void* a, int64_t a_row, const void* b, int64_t b_row, void* out, int64_t begin, int64_t end, int64_t size,
      bool multiply, bool upper, bool stream, bool zeroed);
  void (*widen)(const void* from, void* to, int64_t n);
  void (*narrow)(const void* from, void* to, int64_t n);
};

constexpr int64_t kTriRows = 6;  // rows of a tile

const TriKernels& tri_kernels(Isa isa, Storage storage);

}  // namespace edgeops::ragged
