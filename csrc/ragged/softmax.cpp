// SPDX-License-Identifier: Apache-2.0
// _ragged_softmax_fwd and _ragged_softmax_bwd on the CPU. CoRa, MLSys 2022, section 5.
#include "softmax.h"

#include <torch/csrc/stable/library.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "offsets.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

struct SoftmaxPiece {
  int64_t first, rows, col, cols;
  double cost;
};

// A piece for each sequence and block of columns.
std::vector<SoftmaxPiece> pieces_of(const std::vector<int64_t>& starts, int64_t width, double per_element) {
  std::vector<SoftmaxPiece> pieces;
  const int64_t block = width < kSoftmaxNarrow ? width : kSoftmaxCols;
  for (size_t b = 0; b + 1 < starts.size(); ++b) {
    const int64_t rows = starts[b + 1] - starts[b];
    for (int64_t c = 0; rows > 0 && c < width; c += block) {
      const int64_t cols = std::min(block, width - c);
      pieces.push_back({starts[b], rows, c, cols, 50 + per_element * static_cast<double>(rows * cols)});
    }
  }
  return pieces;
}

}  // namespace

Tensor ragged_softmax_fwd_cpu(const Tensor& x_in, const Tensor& offsets, bool log) {
  const char* who = "ragged_softmax";
  const Storage storage = require_storage(x_in, who, "x");
  EDGEOPS_CHECK(x_in.dim() == 2, ValueError, who, "x must have shape [T, C]", shape_of(x_in), "Flatten it.");
  const auto starts = read_offsets(offsets, x_in.size(0), who, "offsets");
  const int64_t width = x_in.size(1);
  const bool flat = width < kSoftmaxNarrow;
  const bool dense_rows = (width <= 1 || x_in.stride(1) == 1) && !flat;
  const Tensor x = dense_rows ? x_in : dense(x_in);
  Tensor out = new_output(x, {x.size(0), width});
  const auto& kernels = softmax_kernels(active_isa(), storage);
  const auto size = static_cast<int64_t>(x.element_size());
  const int64_t ld = flat ? width : x.stride(0);
  const auto* src = static_cast<const char*>(x.const_data_ptr());
  auto* dst = static_cast<char*>(out.mutable_data_ptr());
  auto pieces = pieces_of(starts, width, 1.0);
  run_by_cost(pieces, [&](const SoftmaxPiece& piece) {
    kernels.forward(
        src + (piece.first * ld + piece.col) * size, ld, dst + (piece.first * width + piece.col) * size, width,
        piece.rows, piece.cols, flat, log);
  });
  return out;
}

Tensor ragged_softmax_bwd_cpu(const Tensor& grad_in, const Tensor& out_in, const Tensor& offsets, bool log) {
  const char* who = "ragged_softmax";
  const Storage storage = require_storage(out_in, who, "out");
  require_tensor(grad_in, who, "grad_out");
  EDGEOPS_CHECK(out_in.dim() == 2, ValueError, who, "out must have shape [T, C]", shape_of(out_in), "Flatten it.");
  EDGEOPS_CHECK(
      grad_in.scalar_type() == out_in.scalar_type() && grad_in.dim() == 2 && grad_in.size(0) == out_in.size(0) &&
          grad_in.size(1) == out_in.size(1),
      ValueError, who, "grad_out must be like out, " + shape_of(out_in) + ", " + dtype_of(out_in),
      shape_of(grad_in) + ", " + dtype_of(grad_in), "It is the gradient of the result.");
  const auto starts = read_offsets(offsets, out_in.size(0), who, "offsets");
  const Tensor grad = dense(grad_in), y = dense(out_in);
  const int64_t width = y.size(1);
  Tensor dx = new_output(y, {y.size(0), width});
  const auto& kernels = softmax_kernels(active_isa(), storage);
  const auto size = static_cast<int64_t>(y.element_size());
  const auto* g = static_cast<const char*>(grad.const_data_ptr());
  const auto* o = static_cast<const char*>(y.const_data_ptr());
  auto* dst = static_cast<char*>(dx.mutable_data_ptr());
  auto pieces = pieces_of(starts, width, 0.7);
  run_by_cost(pieces, [&](const SoftmaxPiece& piece) {
    const int64_t at = (piece.first * width + piece.col) * size;
    kernels.backward(g + at, o + at, dst + at, width, piece.rows, piece.cols, width < kSoftmaxNarrow, log);
  });
  return dx;
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_ragged_softmax_fwd", TORCH_BOX(&ragged_softmax_fwd_cpu));
  m.impl("_ragged_softmax_bwd", TORCH_BOX(&ragged_softmax_bwd_cpu));
}

}  // namespace edgeops::ragged
