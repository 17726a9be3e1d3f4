// SPDX-License-Identifier: Apache-2.0
// _bias_gelu_fwd and _add_layer_norm_fwd on the CPU.
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/output.h"
#include "rows.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

// Rows that make a task of about 20 us at one element a nanosecond.
int64_t row_grain(int64_t width) {
  return 20000 / (width + 1) + 1;
}

void check_rows(const Tensor& x, const char* who) {
  EDGEOPS_CHECK(
      x.dim() == 2, ValueError, who, "x must have shape [T, C]", shape_of(x), "Flatten it with flatten(0, -2).");
}

void check_vector(const Tensor& v, const Tensor& x, const char* who, const char* name) {
  require_tensor(v, who, name);
  EDGEOPS_CHECK(
      v.scalar_type() == x.scalar_type(), TypeError, who,
      std::string(name) + " must have the dtype of x, " + dtype_of(x), dtype_of(v), "Cast it with .to(x.dtype).");
  EDGEOPS_CHECK(
      v.dim() == 1 && v.size(0) == x.size(1) && v.is_cpu(), ValueError, who,
      std::string(name) + " must have shape [" + std::to_string(x.size(1)) + "], on x's device", shape_of(v),
      "Pass the vector of the layer that made x.");
}

}  // namespace

Tensor bias_gelu_fwd_cpu(const Tensor& x_in, const Tensor& bias_in, bool tanh) {
  const char* who = "bias_gelu";
  const Storage storage = require_storage(x_in, who, "x");
  check_rows(x_in, who);
  check_vector(bias_in, x_in, who, "bias");
  const Tensor x = dense(x_in), bias = dense(bias_in);
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor out = new_output(x, {rows, width});
  const auto& kernels = row_kernels(active_isa(), storage);
  torch::stable::parallel_for(0, rows, row_grain(width), [&](int64_t begin, int64_t end) {
    kernels.bias_gelu(x.const_data_ptr(), bias.const_data_ptr(), out.mutable_data_ptr(), begin, end, width, tanh);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_fwd_cpu(
    const Tensor& x_in, std::optional<Tensor> x_bias, const Tensor& residual_in, const Tensor& weight_in,
    const Tensor& bias_in, double eps) {
  const char* who = "add_layer_norm";
  const Storage storage = require_storage(x_in, who, "x");
  check_rows(x_in, who);
  require_tensor(residual_in, who, "residual");
  EDGEOPS_CHECK(
      residual_in.scalar_type() == x_in.scalar_type(), TypeError, who,
      "residual must have the dtype of x, " + dtype_of(x_in), dtype_of(residual_in), "Cast it with .to(x.dtype).");
  EDGEOPS_CHECK(
      residual_in.dim() == 2 && residual_in.size(0) == x_in.size(0) && residual_in.size(1) == x_in.size(1) &&
          residual_in.is_cpu(),
      ValueError, who, "residual must have the shape and device of x, " + shape_of(x_in), shape_of(residual_in),
      "Add rows of the same batch.");
  check_vector(weight_in, x_in, who, "weight");
  check_vector(bias_in, x_in, who, "bias");
  if (x_bias.has_value()) {
    check_vector(*x_bias, x_in, who, "x_bias");
    x_bias = dense(*x_bias);
  }
  const Tensor x = dense(x_in), residual = dense(residual_in);
  const Tensor weight = dense(weight_in), bias = dense(bias_in);
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor out = new_output(x, {rows, width});
  Tensor mean = new_output(x, {rows}, compute_type(storage));
  Tensor rstd = new_output(x, {rows}, compute_type(storage));
  const auto& kernels = row_kernels(active_isa(), storage);
  torch::stable::parallel_for(0, rows, row_grain(width), [&](int64_t begin, int64_t end) {
    kernels.add_layer_norm(
        x.const_data_ptr(), x_bias.has_value() ? x_bias->const_data_ptr() : nullptr, residual.const_data_ptr(),
        weight.const_data_ptr(), bias.const_data_ptr(), eps, out.mutable_data_ptr(), mean.mutable_data_ptr(),
        rstd.mutable_data_ptr(), begin, end, width);
  });
  return {out, mean, rstd};
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_bias_gelu_fwd", TORCH_BOX(&bias_gelu_fwd_cpu));
  m.impl("_add_layer_norm_fwd", TORCH_BOX(&add_layer_norm_fwd_cpu));
}

}  // namespace edgeops::ragged
