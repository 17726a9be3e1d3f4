// SPDX-License-Identifier: Apache-2.0
// _subspace_apply and _subspace_adam on the CPU: the update of LSP-Offload (AAAI 2025), algorithm 1.
#include <cmath>

#include <torch/csrc/stable/library.h>

#include "../common/partition.h"
#include "checks.h"

namespace edgeops::offload {
namespace {

struct Span {
  int64_t begin, end;
  double cost;
};

std::vector<Span> spans_of(int64_t total, int64_t length, double cost_of_one) {
  std::vector<Span> spans;
  for (int64_t i = 0; i < total; i += length) {
    const int64_t end = std::min(total, i + length);
    spans.push_back({i, end, 50 + cost_of_one * static_cast<double>(end - i)});
  }
  return spans;
}

void apply_cpu(
    const Tensor& weight, const Tensor& delta_in, const Tensor& p_index_in, const Tensor& p_value_in,
    const Tensor& q_index_in, const Tensor& q_value_in, double alpha, double keep, bool stochastic, int64_t seed) {
  const char* who = "subspace_apply";
  const Storage storage = require_storage(weight, who, "weight");
  check_matrix(weight, who, "weight");
  const int64_t m = weight.size(0), n = weight.size(1);
  EDGEOPS_CHECK(
      n <= 1 || weight.stride(1) == 1, ValueError, who, "weight must have dense rows",
      "strides (" + std::to_string(weight.stride(0)) + ", " + std::to_string(weight.stride(1)) + ")",
      "Make the parameter contiguous.");
  EDGEOPS_CHECK(
      m <= 1 || weight.stride(0) >= n, ValueError, who, "weight must not overlap itself",
      "row stride " + std::to_string(weight.stride(0)), "Make the parameter contiguous.");
  require_tensor(delta_in, who, "delta");
  check_matrix(delta_in, who, "delta");
  EDGEOPS_CHECK(
      delta_in.scalar_type() == compute_type(storage), TypeError, who,
      storage == Storage::f64 ? "delta must be float64, as the weight" : "delta must be float32", dtype_of(delta_in),
      "It is what _subspace_adam leaves in the gradient.");
  EDGEOPS_CHECK(
      !stochastic || storage == Storage::bf16, TypeError, who, "stochastic rounding is for bfloat16 weights",
      dtype_of(weight), "Use bfloat16 weights, or stochastic=False.");
  EDGEOPS_CHECK(
      std::isfinite(alpha) && std::isfinite(keep), ValueError, who, "alpha and keep must be finite",
      std::to_string(alpha) + ", " + std::to_string(keep), "Check the learning rate.");
  const auto p_index = read_index(p_index_in, m, delta_in.size(0), who, "p_index");
  const auto q_index = read_index(q_index_in, n, delta_in.size(1), who, "q_index");
  const Tensor p_value = read_value(p_value_in, p_index_in, storage, who, "p_value");
  const Tensor q_value = read_value(q_value_in, q_index_in, storage, who, "q_value");
  const Tensor delta = dense(delta_in);
  const ApplyCall call{
      weight.mutable_data_ptr(),
      weight.stride(0),
      n,
      delta.size(1),
      delta.const_data_ptr(),
      p_index.data(),
      p_value.const_data_ptr(),
      p_index_in.size(1),
      q_index.data(),
      q_value.const_data_ptr(),
      q_index_in.size(1),
      keep,
      alpha,
      stochastic,
      seed};
  const auto& kernels = update_kernels(active_isa(), storage);
  auto spans = spans_of(m, kApplyRows, 0.15 * static_cast<double>(n * q_index_in.size(1)));
  run_by_cost(spans, [&](const Span& span) { kernels.apply(call, span.begin, span.end); });
}

void adam_cpu(
    const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq, int64_t step, double beta1, double beta2,
    double eps) {
  const char* who = "subspace_adam";
  const Storage storage = require_storage(grad, who, "grad");
  for (const auto& [tensor, name] : {std::pair(&exp_avg, "exp_avg"), std::pair(&exp_avg_sq, "exp_avg_sq")}) {
    require_tensor(*tensor, who, name);
    EDGEOPS_CHECK(
        tensor->scalar_type() == compute_type(storage) && tensor->numel() == grad.numel(), ValueError, who,
        std::string(name) + " must have as many elements as grad, " + std::to_string(grad.numel()) + ", in " +
            (storage == Storage::f64 ? "float64" : "float32"),
        shape_of(*tensor) + ", " + dtype_of(*tensor), "Start the state with zeros.");
  }
  for (const auto& [tensor, name] :
       {std::pair(&grad, "grad"), std::pair(&exp_avg, "exp_avg"), std::pair(&exp_avg_sq, "exp_avg_sq")}) {
    EDGEOPS_CHECK(
        tensor->is_contiguous() && tensor->is_cpu(), ValueError, who,
        std::string(name) + " must be contiguous and on the CPU", shape_of(*tensor), "It is updated in place.");
  }
  EDGEOPS_CHECK(
      step >= 1, ValueError, who, "step must count from 1", std::to_string(step), "Increase it before the call.");
  EDGEOPS_CHECK(
      beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1 && eps >= 0, ValueError, who,
      "betas must lie in [0, 1), and eps must not be negative",
      std::to_string(beta1) + ", " + std::to_string(beta2) + ", " + std::to_string(eps), "Adam's are (0.9, 0.999).");
  const double scale1 = 1 / (1 - std::pow(beta1, static_cast<double>(step)));
  const double scale2 = 1 / (1 - std::pow(beta2, static_cast<double>(step)));
  const auto& kernels = update_kernels(active_isa(), storage);
  auto* g = static_cast<char*>(grad.mutable_data_ptr());
  auto* m = static_cast<char*>(exp_avg.mutable_data_ptr());
  auto* v = static_cast<char*>(exp_avg_sq.mutable_data_ptr());
  const auto g_size = static_cast<int64_t>(grad.element_size()), size = static_cast<int64_t>(exp_avg.element_size());
  constexpr int64_t kSpan = 16384;  // a multiple of every vector: spans fall as one long span would
  auto spans = spans_of(grad.numel(), kSpan, 1.2);
  run_by_cost(spans, [&](const Span& span) {
    kernels.adam(
        g + span.begin * g_size, m + span.begin * size, v + span.begin * size, span.end - span.begin, beta1, beta2, eps,
        scale1, scale2);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_subspace_apply", TORCH_BOX(&apply_cpu));
  m.impl("_subspace_adam", TORCH_BOX(&adam_cpu));
}

}  // namespace edgeops::offload
