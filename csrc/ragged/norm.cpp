// SPDX-License-Identifier: Apache-2.0
// _ragged_instance_norm_fwd and _ragged_instance_norm_bwd on the CPU.
#include "norm.h"

#include <torch/csrc/stable/library.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "offsets.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

constexpr const char* kWho = "ragged_instance_norm";

struct NormPiece {
  int64_t seq, col, cols;
  double cost;
};

// A piece for each sequence and block of columns; empty sequences too, their statistics are written.
std::vector<NormPiece> pieces_of(const std::vector<int64_t>& starts, int64_t width) {
  std::vector<NormPiece> pieces;
  for (size_t b = 0; b + 1 < starts.size(); ++b) {
    for (int64_t c = 0; c < width; c += kNormCols) {
      const int64_t cols = std::min(kNormCols, width - c);
      const double cost = 50 + 0.6 * static_cast<double>((starts[b + 1] - starts[b]) * cols);
      pieces.push_back({static_cast<int64_t>(b), c, cols, cost});
    }
  }
  return pieces;
}

// A vector of the width of x in one piece of memory, or nothing.
std::optional<Tensor> vector_of(const std::optional<Tensor>& v, const Tensor& x, const char* name) {
  if (!v.has_value()) {
    return std::nullopt;
  }
  EDGEOPS_CHECK(
      v->dim() == 1 && v->size(0) == x.size(1) && v->scalar_type() == x.scalar_type() && v->is_cpu(), ValueError, kWho,
      std::string(name) + " must have shape [C] with C = " + std::to_string(x.size(1)) + " and the dtype of x",
      shape_of(*v) + ", " + dtype_of(*v), "It needs one value per column of x.");
  return dense(*v);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> ragged_instance_norm_fwd_cpu(
    const Tensor& x_in, const Tensor& offsets, const std::optional<Tensor>& weight_in,
    const std::optional<Tensor>& bias_in, double eps) {
  const Storage storage = require_storage(x_in, kWho, "x");
  EDGEOPS_CHECK(x_in.dim() == 2, ValueError, kWho, "x must have shape [T, C]", shape_of(x_in), "Flatten it.");
  const auto starts = read_offsets(offsets, x_in.size(0), kWho, "offsets");
  const auto weight = vector_of(weight_in, x_in, "weight"), bias = vector_of(bias_in, x_in, "bias");
  const int64_t width = x_in.size(1), count = static_cast<int64_t>(starts.size()) - 1;
  const Tensor x = width <= 1 || x_in.stride(1) == 1 ? x_in : dense(x_in);
  const int64_t ld = x.stride(0);
  Tensor out = new_output(x, {x.size(0), width});
  Tensor mean = new_output(x, {count, width}, compute_type(storage));
  Tensor rstd = new_output(x, {count, width}, compute_type(storage));
  const auto& kernels = norm_kernels(active_isa(), storage);
  const auto size = static_cast<int64_t>(x.element_size()), wide = static_cast<int64_t>(mean.element_size());
  const auto* src = static_cast<const char*>(x.const_data_ptr());
  const auto* w = weight ? static_cast<const char*>(weight->const_data_ptr()) : nullptr;
  const auto* b = bias ? static_cast<const char*>(bias->const_data_ptr()) : nullptr;
  auto *dst = static_cast<char*>(out.mutable_data_ptr()), *m = static_cast<char*>(mean.mutable_data_ptr()),
       *s = static_cast<char*>(rstd.mutable_data_ptr());
  auto pieces = pieces_of(starts, width);
  run_by_cost(pieces, [&](const NormPiece& piece) {
    const int64_t first = starts[piece.seq], at = (piece.seq * width + piece.col) * wide;
    kernels.forward(
        src + (first * ld + piece.col) * size, ld, w ? w + piece.col * size : nullptr,
        b ? b + piece.col * size : nullptr, eps, dst + (first * width + piece.col) * size, width, m + at, s + at,
        starts[piece.seq + 1] - first, piece.cols);
  });
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> ragged_instance_norm_bwd_cpu(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& offsets, const Tensor& mean_in, const Tensor& rstd_in,
    const std::optional<Tensor>& weight_in) {
  const Storage storage = require_storage(x_in, kWho, "x");
  require_tensor(grad_in, kWho, "grad_out");
  EDGEOPS_CHECK(
      x_in.dim() == 2 && grad_in.dim() == 2 && grad_in.size(0) == x_in.size(0) && grad_in.size(1) == x_in.size(1) &&
          grad_in.scalar_type() == x_in.scalar_type(),
      ValueError, kWho, "grad_out must be like x, " + shape_of(x_in), shape_of(grad_in),
      "It is the gradient of the result.");
  const auto starts = read_offsets(offsets, x_in.size(0), kWho, "offsets");
  const auto weight = vector_of(weight_in, x_in, "weight");
  const int64_t width = x_in.size(1), count = static_cast<int64_t>(starts.size()) - 1;
  for (const Tensor* t : {&mean_in, &rstd_in}) {
    EDGEOPS_CHECK(
        t->dim() == 2 && t->size(0) == count && t->size(1) == width && t->scalar_type() == compute_type(storage),
        ValueError, kWho, "mean and rstd must be those of the forward pass, [N, C]", shape_of(*t),
        "Pass what it returned.");
  }
  const Tensor x = dense(x_in), grad = dense(grad_in), mean = dense(mean_in), rstd = dense(rstd_in);
  Tensor dx = new_output(x, {x.size(0), width}), dweight = new_output(x, {width}), dbias = new_output(x, {width});
  Tensor parts = new_output(mean, {2, count, width});
  const auto& kernels = norm_kernels(active_isa(), storage);
  const auto size = static_cast<int64_t>(x.element_size()), wide = static_cast<int64_t>(mean.element_size());
  const auto *src = static_cast<const char*>(x.const_data_ptr()), *g = static_cast<const char*>(grad.const_data_ptr()),
             *m = static_cast<const char*>(mean.const_data_ptr()), *s = static_cast<const char*>(rstd.const_data_ptr());
  const auto* w = weight ? static_cast<const char*>(weight->const_data_ptr()) : nullptr;
  auto *dst = static_cast<char*>(dx.mutable_data_ptr()), *first_parts = static_cast<char*>(parts.mutable_data_ptr());
  char* second_parts = first_parts + count * width * wide;
  auto pieces = pieces_of(starts, width);
  run_by_cost(pieces, [&](const NormPiece& piece) {
    const int64_t from = (starts[piece.seq] * width + piece.col) * size, at = (piece.seq * width + piece.col) * wide;
    kernels.backward(
        g + from, src + from, width, w ? w + piece.col * size : nullptr, m + at, s + at, dst + from, first_parts + at,
        second_parts + at, starts[piece.seq + 1] - starts[piece.seq], piece.cols);
  });
  kernels.add_up(first_parts, count, width, dweight.mutable_data_ptr());
  kernels.add_up(second_parts, count, width, dbias.mutable_data_ptr());
  return {dx, dweight, dbias};
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_ragged_instance_norm_fwd", TORCH_BOX(&ragged_instance_norm_fwd_cpu));
  m.impl("_ragged_instance_norm_bwd", TORCH_BOX(&ragged_instance_norm_bwd_cpu));
}

}  // namespace edgeops::ragged
