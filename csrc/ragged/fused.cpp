// SPDX-License-Identifier: Apache-2.0
// _bias_gelu_fwd and _add_layer_norm_fwd on the CPU.
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/output.h"
#include "rows.h"
#include "rows_check.h"

namespace edgeops::ragged {

using torch::stable::Tensor;

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
  check_like(residual_in, x_in, who, "residual");
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
