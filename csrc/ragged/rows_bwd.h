// SPDX-License-Identifier: Apache-2.0
// Backward row kernels, as the ops (fused_bwd.cpp, pool_bwd.cpp) see them. Column sums go through partial sums in
// compute type, one set a block of kBlockRows rows, added in order afterwards: the bits depend on the shape alone.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::ragged {

constexpr int64_t kBlockRows = 64;

struct RowBackwardKernels {
  // dx = grad * gelu'(x + bias) for rows [begin, end); `columns` [width] gets the column sums of dx
  void (*bias_gelu)(
      const void* grad, const void* x, const void* bias, void* dx, void* columns, int64_t begin, int64_t end,
      int64_t width, bool tanh);
  // dsum for rows [begin, end); `columns` [3, width] gets the column sums for dweight, dbias and dx_bias
  void (*add_layer_norm)(
      const void* grad, const void* x, const void* x_bias, const void* residual, const void* mean, const void* rstd,
      const void* weight, void* dsum, void* columns, int64_t begin, int64_t end, int64_t width);
  // out[begin, end) = sum over `blocks` of columns[block * stride + c], in order
  void (*add_columns)(const void* columns, int64_t blocks, int64_t stride, void* out, int64_t begin, int64_t end);
  // dx of `rows` rows of a sequence of `count`: grad / count (mode 1) or grad (mode 0) in each
  void (*pool)(const void* grad, int64_t rows, int64_t count, int64_t width, int64_t mode, void* dx);
  // dx of a whole sequence: the rows that reach its maximum or minimum share the gradient; `soft`: all do, by exp(x)
  void (*pool_shared)(
      const void* grad, const void* x, int64_t ld, const void* out, int64_t rows, int64_t width, bool soft, void* dx);
};

const RowBackwardKernels& row_backward_kernels(Isa isa, Storage storage);

}  // namespace edgeops::ragged
