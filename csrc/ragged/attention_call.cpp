// SPDX-License-Identifier: Apache-2.0
// Checks of ragged attention.
#include "attention_call.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include <torch/csrc/stable/ops.h>

#include "offsets.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

constexpr const char* kWho = "ragged_attention";

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v) {
  require_storage(q, kWho, "q");
  require_tensor(k, kWho, "k");
  require_tensor(v, kWho, "v");
  EDGEOPS_CHECK(
      k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), TypeError, kWho,
      "q, k and v must have one dtype", dtype_of(q) + ", " + dtype_of(k) + ", " + dtype_of(v), "Cast k and v to q's.");
  EDGEOPS_CHECK(
      q.dim() == 3 && k.dim() == 3 && v.dim() == 3, ValueError, kWho,
      "q, k and v must have shapes [Tq, Hq, D], [Tk, Hk, D], [Tk, Hk, Dv]",
      shape_of(q) + ", " + shape_of(k) + ", " + shape_of(v), "Pack the batch first (edgeops.ragged.pack).");
  EDGEOPS_CHECK(
      k.is_cpu() && v.is_cpu(), ValueError, kWho, "q, k and v must be on one device", "k or v elsewhere",
      "Move them with .to(q.device).");
  EDGEOPS_CHECK(
      k.size(0) == v.size(0) && k.size(1) == v.size(1), ValueError, kWho, "k and v must have the same rows and heads",
      shape_of(k) + " and " + shape_of(v), "Check the projection that made them.");
  EDGEOPS_CHECK(
      q.size(2) == k.size(2), ValueError, kWho, "q and k must have the same head size",
      std::to_string(q.size(2)) + " and " + std::to_string(k.size(2)), "Check the projections.");
  EDGEOPS_CHECK(
      k.size(1) > 0 && q.size(1) % k.size(1) == 0, ValueError, kWho,
      "the heads of q must be a multiple of the heads of k",
      std::to_string(q.size(1)) + " and " + std::to_string(k.size(1)), "Check num_heads and num_key_value_heads.");
}

void check_bias(const Tensor& bias, const Tensor& q, int64_t sequences, int64_t longest_q, int64_t longest_k) {
  EDGEOPS_CHECK(
      bias.dim() == 4, ValueError, kWho, "bias must have shape [B|1, Hq|1, Mq|1, Mk|1]", shape_of(bias),
      "Add dimensions of size 1 with unsqueeze.");
  EDGEOPS_CHECK(
      storage_of(bias.scalar_type()).has_value(), TypeError, kWho, "bias must be a floating point tensor",
      dtype_of(bias), "Turn a boolean mask into 0 and -inf.");
  EDGEOPS_CHECK(bias.is_cpu(), ValueError, kWho, "bias must be on the device of q", "another device", "Move it.");
  const bool fits =
      (bias.size(0) == 1 || bias.size(0) == sequences) && (bias.size(1) == 1 || bias.size(1) == q.size(1)) &&
      (bias.size(2) == 1 || bias.size(2) >= longest_q) && (bias.size(3) == 1 || bias.size(3) >= longest_k);
  EDGEOPS_CHECK(
      fits, ValueError, kWho,
      "bias must broadcast to [" + std::to_string(sequences) + ", " + std::to_string(q.size(1)) +
          ", >=" + std::to_string(longest_q) + ", >=" + std::to_string(longest_k) + "]",
      shape_of(bias), "Check the number of sequences, heads and the longest lengths.");
}

int64_t longest(const std::vector<int64_t>& starts) {
  int64_t best = 0;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    best = std::max(best, starts[i + 1] - starts[i]);
  }
  return best;
}

DropoutCall read_dropout(double p, const std::optional<Tensor>& seed) {
  EDGEOPS_CHECK(
      p >= 0 && p < 1, ValueError, kWho, "dropout_p must be at least 0 and below 1", std::to_string(p),
      "Use 0 for no dropout.");
  if (p == 0) {
    return {};
  }
  EDGEOPS_CHECK(
      seed.has_value(), ValueError, kWho, "dropout needs a seed", "None", "Pass a 0-dim int64 tensor, drawn anew.");
  require_tensor(*seed, kWho, "seed");
  EDGEOPS_CHECK(
      seed->scalar_type() == torch::headeronly::ScalarType::Long && seed->dim() == 0 && seed->is_cpu(), ValueError,
      kWho, "seed must be a 0-dim int64 tensor on the device of q", dtype_of(*seed) + " " + shape_of(*seed),
      "Draw it with torch.randint(..., size=(), dtype=torch.int64).");
  return {
      true, *static_cast<const int64_t*>(seed->const_data_ptr()), static_cast<uint32_t>(p * 4294967296.0), 1 / (1 - p)};
}

}  // namespace

Tensor dense_rows(const Tensor& x) {
  return x.size(2) <= 1 || x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

AttentionArguments read_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
    std::optional<Tensor> bias, double scale, bool causal, int64_t window_left, int64_t window_right, double dropout_p,
    const std::optional<Tensor>& seed) {
  check_shapes(q, k, v);
  auto starts_q = read_offsets(cu_q, q.size(0), kWho, "cu_q");
  auto starts_k = read_offsets(cu_k, k.size(0), kWho, "cu_k");
  const auto sequences = static_cast<int64_t>(starts_q.size()) - 1;
  EDGEOPS_CHECK(
      starts_k.size() == starts_q.size(), ValueError, kWho, "cu_q and cu_k must describe the same number of sequences",
      std::to_string(sequences) + " and " + std::to_string(starts_k.size() - 1), "Build both from one batch.");
  AttentionArguments a{
      std::move(starts_q),         std::move(starts_k), dense_rows(q), dense_rows(k), dense_rows(v), std::nullopt, {},
      *storage_of(q.scalar_type())};
  AttentionCall& c = a.call;
  if (bias.has_value()) {
    check_bias(*bias, q, sequences, longest(a.starts_q), longest(a.starts_k));
    const auto wide = compute_type(a.storage);
    a.bias = bias->scalar_type() == wide ? *bias : torch::stable::to(*bias, wide);
    const auto stride = [&](int64_t d) { return a.bias->size(d) == 1 ? 0 : a.bias->stride(d); };
    c.bias_b = stride(0);
    c.bias_h = stride(1);
    c.bias_i = stride(2);
    c.bias_j = stride(3);
    if (a.storage == Storage::f64) {
      c.bias64 = static_cast<const double*>(a.bias->const_data_ptr());
    } else {
      c.bias = static_cast<const float*>(a.bias->const_data_ptr());
    }
  }
  c.q = a.q.const_data_ptr();
  c.k = a.k.const_data_ptr();
  c.v = a.v.const_data_ptr();
  c.cu_q = a.starts_q.data();
  c.cu_k = a.starts_k.data();
  c.q_row = a.q.stride(0);
  c.q_head = a.q.stride(1);
  c.k_row = a.k.stride(0);
  c.k_head = a.k.stride(1);
  c.v_row = a.v.stride(0);
  c.v_head = a.v.stride(1);
  c.sequences = sequences;
  c.heads = q.size(1);
  c.kv_heads = k.size(1);
  c.dim = q.size(2);
  c.dim_v = v.size(2);
  c.scale = scale;
  c.dropout = read_dropout(dropout_p, seed);
  constexpr int64_t kWide = int64_t{1} << 48;  // wider than any sequence, and far from overflow
  c.left = window_left < 0 ? -1 : std::min(window_left, kWide);
  c.right = causal ? 0 : (window_right < 0 ? -1 : std::min(window_right, kWide));
  return a;
}

}  // namespace edgeops::ragged
