// SPDX-License-Identifier: Apache-2.0
// _strsaga_run on the CPU: one batch of steps of one or many independent learners.
#include "strsaga.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/check.h"
#include "../common/output.h"
#include "../common/partition.h"

namespace edgeops::drift {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const char* const kWho = "strsaga_run";

struct Piece {
  Turn turn;
  int64_t model, reached;
  double cost;
};

void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> shape, ScalarType type) {
  require_tensor(t, kWho, name);
  std::string wanted = "(";
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  int64_t k = 0;
  for (const int64_t size : shape) {
    wanted += (k ? ", " : "") + std::to_string(size);
    same = same && t.size(k) == size;
    ++k;
  }
  EDGEOPS_CHECK(
      same, ValueError, kWho, std::string(name) + " must have shape " + wanted + ")", shape_of(t),
      "The sizes are those of x [models, points, features] and w [models, features].");
  EDGEOPS_CHECK(
      t.scalar_type() == type, TypeError, kWho, std::string(name) + " must be " + torch::headeronly::toString(type),
      dtype_of(t), "Cast it.");
  EDGEOPS_CHECK(t.is_cpu(), ValueError, kWho, std::string(name) + " must be on the CPU", "another device", "Move it.");
}

void check_written(const Tensor& t, const char* name) {
  EDGEOPS_CHECK(
      t.is_contiguous(), ValueError, kWho, std::string(name) + " must be contiguous", shape_of(t) + " with strides",
      "It is updated in place.");
}

void run_cpu(
    const Tensor& x, const Tensor& y, const Tensor& order_in, const Tensor& starts_in, const Tensor& w,
    const Tensor& sum, const Tensor& alpha, const Tensor& window, double eta, double mu) {
  const Storage storage = require_storage(x, kWho, "x");
  EDGEOPS_CHECK(
      storage == Storage::f32 || storage == Storage::f64, TypeError, kWho, "x must be float32 or float64", dtype_of(x),
      "Cast it, for example with .float().");
  EDGEOPS_CHECK(
      x.dim() == 3, ValueError, kWho, "x must have shape [models, points, features]", shape_of(x),
      "For points that all models share: x.expand(models, -1, -1).");
  const ScalarType type = x.scalar_type();
  const int64_t models = x.size(0), points = x.size(1), d = x.size(2);
  check_shape(x, "x", {models, points, d}, type);
  check_shape(y, "y", {models, points}, type);
  check_shape(w, "w", {models, d}, type);
  check_shape(sum, "sum", {models, d}, type);
  check_shape(alpha, "alpha", {models, points}, type);
  check_shape(window, "window", {models, 2}, ScalarType::Long);
  check_shape(starts_in, "starts", {models + 1}, ScalarType::Long);
  require_tensor(order_in, kWho, "order");
  check_shape(order_in, "order", {order_in.numel()}, ScalarType::Int);
  check_written(w, "w");
  check_written(sum, "sum");
  check_written(alpha, "alpha");
  check_written(window, "window");
  EDGEOPS_CHECK(
      x.numel() == 0 ||
          ((points <= 1 || x.stride(1) == d) && (d <= 1 || x.stride(2) == 1) && (points <= 1 || y.stride(1) == 1)),
      ValueError, kWho, "the points of a model must lie dense in x and y", shape_of(x) + " with strides",
      "Make them contiguous; only the first dimension may be expanded.");
  EDGEOPS_CHECK(
      std::isfinite(eta) && eta > 0 && std::isfinite(mu) && mu >= 0, ValueError, kWho,
      "eta must be positive and mu not negative, both finite", std::to_string(eta) + ", " + std::to_string(mu),
      "Check the step size and the regulariser.");

  const Tensor order = dense(order_in), starts = dense(starts_in);
  const auto* visits = static_cast<const int32_t*>(order.const_data_ptr());
  const auto* bounds = static_cast<const int64_t*>(starts.const_data_ptr());
  auto* windows = static_cast<int64_t*>(window.mutable_data_ptr());
  const auto size = static_cast<int64_t>(x.element_size());
  const auto* x_data = static_cast<const char*>(x.const_data_ptr());
  const auto* y_data = static_cast<const char*>(y.const_data_ptr());
  auto* w_data = static_cast<char*>(w.mutable_data_ptr());
  auto* sum_data = static_cast<char*>(sum.mutable_data_ptr());
  auto* alpha_data = static_cast<char*>(alpha.mutable_data_ptr());
  EDGEOPS_CHECK(
      bounds[0] == 0 && bounds[models] == order.numel(), ValueError, kWho,
      "starts must run from 0 to the length of order, " + std::to_string(order.numel()),
      std::to_string(bounds[0]) + " to " + std::to_string(bounds[models]),
      "Model j takes order[starts[j]:starts[j+1]].");

  // every integer is checked before anything is written
  std::vector<Piece> pieces;
  for (int64_t j = 0; j < models; ++j) {
    const int64_t first = bounds[j], last = bounds[j + 1], start = windows[2 * j];
    int64_t end = windows[2 * j + 1];
    EDGEOPS_CHECK(
        first <= last && last <= order.numel(), ValueError, kWho, "starts must not decrease",
        std::to_string(first) + " before " + std::to_string(last), "Sum up the steps of each model.");
    EDGEOPS_CHECK(
        0 <= start && start <= end && end <= points, ValueError, kWho,
        "each window must be 0 <= start <= end <= " + std::to_string(points),
        std::to_string(start) + ", " + std::to_string(end), "A new model has start == end.");
    const Turn turn{
        x_data + j * x.stride(0) * size,
        y_data + j * y.stride(0) * size,
        d,
        w_data + j * d * size,
        sum_data + j * d * size,
        alpha_data + j * points * size,
        visits + first,
        last - first,
        start,
        end,
        eta,
        mu};
    for (int64_t s = first; s < last; ++s) {
      EDGEOPS_CHECK(
          visits[s] >= start && visits[s] <= end && visits[s] < points, ValueError, kWho,
          "order must name points of the window [" + std::to_string(start) + ", " + std::to_string(end) +
              ") or the next one, of " + std::to_string(points),
          std::to_string(visits[s]) + " for model " + std::to_string(j), "Points enter one by one, in order.");
      end += visits[s] == end;
    }
    if (last > first) {
      pieces.push_back({turn, j, end, static_cast<double>(last - first) * (30 + 0.6 * static_cast<double>(d))});
    }
  }
  const auto& kernels = strsaga_kernels(active_isa(), storage);
  run_by_cost(pieces, [&](const Piece& piece) {
    kernels.run(piece.turn);
    windows[2 * piece.model + 1] = piece.reached;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_strsaga_run", TORCH_BOX(&run_cpu));
}

}  // namespace edgeops::drift
