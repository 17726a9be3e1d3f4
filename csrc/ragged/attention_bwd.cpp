// SPDX-License-Identifier: Apache-2.0
// _ragged_attention_bwd on the CPU: checks, work by sequence and kv head, one parallel region.
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "../common/room.h"
#include "attention_bwd_isa.h"
#include "attention_call.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

constexpr const char* kWho = "ragged_attention backward";

// Sequences [b, b_end) times kv heads [h, h_end), by one thread in this order.
struct GradPiece {
  int64_t b, b_end, h, h_end;
  double cost;
};

void check_like(const Tensor& x, const Tensor& q, int64_t heads, int64_t width, const char* name) {
  require_tensor(x, kWho, name);
  const bool fits = x.is_cpu() && x.dim() == (width < 0 ? 2 : 3) && x.size(0) == q.size(0) && x.size(1) == heads &&
                    (width < 0 || x.size(2) == width);
  EDGEOPS_CHECK(
      fits, ValueError, kWho, std::string(name) + " must have the shape that the forward pass gave", shape_of(x),
      "Pass what ragged_attention returned, and gradients of its shape.");
}

// A gradient of a broadcast bias grows in a fixed order, so all that adds to one element of it is one piece.
std::vector<GradPiece> cut(const AttentionGradCall& g, bool join_sequences, bool join_heads) {
  const AttentionCall& c = g.fwd;
  const int64_t b_step = join_sequences ? c.sequences : 1, h_step = join_heads ? c.kv_heads : 1;
  const auto work = static_cast<double>(c.heads / c.kv_heads * (3 * c.dim + 2 * c.dim_v)) / 25;
  std::vector<GradPiece> pieces;
  for (int64_t b = 0; b < c.sequences; b += b_step) {
    double pairs = 0;
    for (int64_t s = b; s < b + b_step; ++s) {
      const auto lq = static_cast<double>(c.cu_q[s + 1] - c.cu_q[s]),
                 lk = static_cast<double>(c.cu_k[s + 1] - c.cu_k[s]);
      pairs += lq * lk + 10 * (lq + lk) + 1;
    }
    for (int64_t h = 0; h < c.kv_heads; h += h_step) {
      pieces.push_back({b, b + b_step, h, h + h_step, pairs * work * static_cast<double>(h_step)});
    }
  }
  return pieces;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> ragged_attention_bwd_cpu(
    const Tensor& grad_out_in, std::optional<Tensor> grad_lse, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& out_in, const Tensor& lse_in, const Tensor& cu_q, const Tensor& cu_k, std::optional<Tensor> bias,
    double scale, bool causal, int64_t window_left, int64_t window_right, double dropout_p,
    std::optional<Tensor> seed) {
  AttentionArguments a =
      read_attention(q, k, v, cu_q, cu_k, bias, scale, causal, window_left, window_right, dropout_p, seed);
  AttentionGradCall g{};
  g.fwd = a.call;
  const AttentionCall& c = g.fwd;
  const auto wide = compute_type(a.storage);
  check_like(grad_out_in, q, c.heads, c.dim_v, "grad_out");
  check_like(out_in, q, c.heads, c.dim_v, "out");
  check_like(lse_in, q, c.heads, -1, "lse");
  const auto as = [](const Tensor& x, torch::headeronly::ScalarType type) {
    return x.scalar_type() == type ? x : torch::stable::to(x, type);
  };
  const Tensor grad_out = dense_rows(as(grad_out_in, q.scalar_type())), out = dense_rows(as(out_in, q.scalar_type()));
  const Tensor lse = dense(as(lse_in, wide));
  if (grad_lse.has_value()) {
    check_like(*grad_lse, q, c.heads, -1, "grad_lse");
    grad_lse = dense(as(*grad_lse, wide));
    g.grad_lse = grad_lse->const_data_ptr();
  }
  Tensor dq = new_output(q, {q.size(0), c.heads, c.dim});
  Tensor dk = new_output(k, {k.size(0), c.kv_heads, c.dim});
  Tensor dv = new_output(v, {v.size(0), c.kv_heads, c.dim_v});
  Tensor dbias = new_output(q, {0}, wide);
  if (bias.has_value()) {
    dbias = new_output(q, {bias->size(0), bias->size(1), bias->size(2), bias->size(3)}, wide);
    torch::stable::zero_(dbias);
    const auto stride = [&](int64_t d) { return dbias.size(d) == 1 ? 0 : dbias.stride(d); };
    g.dbias = dbias.mutable_data_ptr();
    g.db_b = stride(0);
    g.db_h = stride(1);
    g.db_i = stride(2);
    g.db_j = stride(3);
  }
  g.grad_out = grad_out.const_data_ptr();
  g.out = out.const_data_ptr();
  g.lse = lse.const_data_ptr();
  g.go_row = grad_out.stride(0);
  g.go_head = grad_out.stride(1);
  g.out_row = out.stride(0);
  g.out_head = out.stride(1);
  g.dq = dq.mutable_data_ptr();
  g.dk = dk.mutable_data_ptr();
  g.dv = dv.mutable_data_ptr();
  const AttentionGradKernel& kernel = attention_grad_kernel(active_isa(), a.storage);
  auto pieces = cut(g, g.dbias != nullptr && g.db_b == 0, g.dbias != nullptr && g.db_h == 0);
  run_by_cost(pieces, [&](const GradPiece& piece) {
    for (int64_t b = piece.b; b < piece.b_end; ++b) {
      char* scratch = scratch_of_thread(0, kernel.scratch(g, b));
      for (int64_t h = piece.h; h < piece.h_end; ++h) {
        kernel.run(g, b, h, scratch);
      }
    }
  });
  if (bias.has_value()) {
    dbias = as(dbias, bias->scalar_type());
  }
  return {dq, dk, dv, dbias};
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_ragged_attention_bwd", TORCH_BOX(&ragged_attention_bwd_cpu));
}

}  // namespace edgeops::ragged
