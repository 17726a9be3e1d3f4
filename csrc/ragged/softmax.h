// SPDX-License-Identifier: Apache-2.0
// Softmax over the rows of a segment, as the op (softmax.cpp) sees it.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::ragged {

struct SoftmaxKernels {
  // out = softmax (or its logarithm) of every column of `rows` x `cols` of x; `flat`: rows of x and out are dense and
  // narrow. `ld` and `ld_out` are the distances between rows.
  void (*forward)(
      const void* x, int64_t ld, void* out, int64_t ld_out, int64_t rows, int64_t cols, bool flat, bool log);
  // dx of the same, from the gradient and the result; all three `ld` apart
  void (*backward)(
      const void* grad, const void* out, void* dx, int64_t ld, int64_t rows, int64_t cols, bool flat, bool log);
};

constexpr int64_t kSoftmaxNarrow = 32;  // fewer columns are folded into longer rows
constexpr int64_t kSoftmaxCols = 256;   // columns of a piece

const SoftmaxKernels& softmax_kernels(Isa isa, Storage storage);

}  // namespace edgeops::ragged
