// SPDX-License-Identifier: Apache-2.0
// Normalisation of each column of a segment, as the op (norm.cpp) sees it.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::ragged {

struct NormKernels {
  // out = (x - mean) * rstd * weight + bias over `rows` rows of `cols` columns, `ld` apart; weight and bias of storage
  // type or null; mean and rstd of the segment in compute type
  void (*forward)(
      const void* x, int64_t ld, const void* weight, const void* bias, double eps, void* out, int64_t ld_out,
      void* mean, void* rstd, int64_t rows, int64_t cols);
  // dx, and the segment's sums of grad * normalised and of grad, in compute type
  void (*backward)(
      const void* grad, const void* x, int64_t ld, const void* weight, const void* mean, const void* rstd, void* dx,
      void* dweight, void* dbias, int64_t rows, int64_t cols);
  // out[c] = sum over n of parts[n, c], in storage type
  void (*add_up)(const void* parts, int64_t count, int64_t cols, void* out);
};

constexpr int64_t kNormCols = 256;  // columns of a piece, and the most that are held beside

const NormKernels& norm_kernels(Isa isa, Storage storage);

}  // namespace edgeops::ragged
