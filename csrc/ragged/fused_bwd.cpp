// SPDX-License-Identifier: Apache-2.0
// _bias_gelu_bwd and _add_layer_norm_bwd on the CPU, each in one pass over the rows with its column sums.
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/output.h"
#include "rows_bwd.h"
#include "rows_check.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

// The column sums of blocks of rows: computed by whichever thread, added in the order of the rows.
class ColumnSums {
 public:
  ColumnSums(const Tensor& x, Storage storage, int64_t vectors)
      : storage_(storage),
        width_(x.size(1)),
        vectors_(vectors),
        blocks_((x.size(0) + kBlockRows - 1) / kBlockRows),
        size_(storage == Storage::f64 ? 8 : 4),
        partial_(new_output(x, {blocks_, vectors * width_}, compute_type(storage))) {}

  // body(first row, last row, room for the column sums of these rows)
  template <class Body>
  void fill(int64_t rows, const Body& body) {
    char* data = static_cast<char*>(partial_.mutable_data_ptr());
    const int64_t grain = row_grain(width_) / kBlockRows + 1;
    torch::stable::parallel_for(0, blocks_, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b * kBlockRows, last = first + kBlockRows < rows ? first + kBlockRows : rows;
        body(first, last, data + b * vectors_ * width_ * size_);
      }
    });
  }

  // Vector `index` of the sums, as a tensor like `x`.
  Tensor total(const Tensor& x, int64_t index) const {
    Tensor out = new_output(x, {width_});
    const char* data = static_cast<const char*>(partial_.const_data_ptr()) + index * width_ * size_;
    row_backward_kernels(active_isa(), storage_)
        .add_columns(data, blocks_, vectors_ * width_, out.mutable_data_ptr(), 0, width_);
    return out;
  }

 private:
  Storage storage_;
  int64_t width_, vectors_, blocks_, size_;
  Tensor partial_;
};

void check_statistic(const Tensor& s, const Tensor& x, Storage storage, const char* who, const char* name) {
  require_tensor(s, who, name);
  EDGEOPS_CHECK(
      s.scalar_type() == compute_type(storage) && s.dim() == 1 && s.size(0) == x.size(0) && s.is_cpu(), ValueError, who,
      std::string(name) + " must be the one that the forward op returned, [" + std::to_string(x.size(0)) + "]",
      dtype_of(s) + " " + shape_of(s), "Pass the outputs of _add_layer_norm_fwd on the same rows.");
}

}  // namespace

std::tuple<Tensor, Tensor> bias_gelu_bwd_cpu(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& bias_in, bool tanh) {
  const char* who = "bias_gelu";
  const Storage storage = require_storage(x_in, who, "x");
  check_rows(x_in, who);
  check_like(grad_in, x_in, who, "grad_out");
  check_vector(bias_in, x_in, who, "bias");
  const Tensor grad = dense(grad_in), x = dense(x_in), bias = dense(bias_in);
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor dx = new_output(x, {rows, width});
  ColumnSums sums(x, storage, 1);
  const auto& kernels = row_backward_kernels(active_isa(), storage);
  sums.fill(rows, [&](int64_t first, int64_t last, void* columns) {
    kernels.bias_gelu(
        grad.const_data_ptr(), x.const_data_ptr(), bias.const_data_ptr(), dx.mutable_data_ptr(), columns, first, last,
        width, tanh);
  });
  return {dx, sums.total(x, 0)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_bwd_cpu(
    const Tensor& grad_in, const Tensor& x_in, std::optional<Tensor> x_bias, const Tensor& residual_in,
    const Tensor& mean_in, const Tensor& rstd_in, const Tensor& weight_in) {
  const char* who = "add_layer_norm";
  const Storage storage = require_storage(x_in, who, "x");
  check_rows(x_in, who);
  check_like(grad_in, x_in, who, "grad_out");
  check_like(residual_in, x_in, who, "residual");
  check_vector(weight_in, x_in, who, "weight");
  check_statistic(mean_in, x_in, storage, who, "mean");
  check_statistic(rstd_in, x_in, storage, who, "rstd");
  if (x_bias.has_value()) {
    check_vector(*x_bias, x_in, who, "x_bias");
    x_bias = dense(*x_bias);
  }
  const Tensor grad = dense(grad_in), x = dense(x_in), residual = dense(residual_in), weight = dense(weight_in);
  const Tensor mean = dense(mean_in), rstd = dense(rstd_in);
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor dsum = new_output(x, {rows, width});
  ColumnSums sums(x, storage, 3);
  const auto& kernels = row_backward_kernels(active_isa(), storage);
  sums.fill(rows, [&](int64_t first, int64_t last, void* columns) {
    kernels.add_layer_norm(
        grad.const_data_ptr(), x.const_data_ptr(), x_bias.has_value() ? x_bias->const_data_ptr() : nullptr,
        residual.const_data_ptr(), mean.const_data_ptr(), rstd.const_data_ptr(), weight.const_data_ptr(),
        dsum.mutable_data_ptr(), columns, first, last, width);
  });
  Tensor dx_bias = x_bias.has_value() ? sums.total(x, 2) : new_output(x, {0});
  return {dsum, sums.total(x, 0), sums.total(x, 1), dx_bias};
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_bias_gelu_bwd", TORCH_BOX(&bias_gelu_bwd_cpu));
  m.impl("_add_layer_norm_bwd", TORCH_BOX(&add_layer_norm_bwd_cpu));
}

}  // namespace edgeops::ragged
