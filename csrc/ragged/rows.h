// SPDX-License-Identifier: Apache-2.0
// Position-wise and pooling row kernels, as the ops (fused.cpp, pool.cpp) see them.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::ragged {

struct RowKernels {
  // out[r, :] = gelu(x[r, :] + bias) for rows [begin, end); all dense
  void (*bias_gelu)(const void* x, const void* bias, void* out, int64_t begin, int64_t end, int64_t width, bool tanh);
  // out[r, :] = layer_norm(x + x_bias + residual) * weight + bias; x_bias may be null; mean, rstd in compute type
  void (*add_layer_norm)(
      const void* x, const void* x_bias, const void* residual, const void* weight, const void* bias, double eps,
      void* out, void* mean, void* rstd, int64_t begin, int64_t end, int64_t width);
  // out[:] = sum, mean, maximum, minimum or log-sum-exp of `rows` rows `ld` apart; mode as in the op
  void (*pool)(const void* x, int64_t ld, int64_t rows, int64_t width, int64_t mode, void* out);
};

const RowKernels& row_kernels(Isa isa, Storage storage);

}  // namespace edgeops::ragged
