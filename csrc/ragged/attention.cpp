// SPDX-License-Identifier: Apache-2.0
// _ragged_attention_fwd on the CPU: the list of work pieces, one parallel region.
#include "attention.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "../common/room.h"
#include "attention_call.h"
#include "attention_isa.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

// Pieces: all heads of a short sequence, single heads of a middle one, query tiles of a long one. Tiles are whole
// multiples of the row block, so the arithmetic of a row does not depend on the cut.
std::vector<AttentionPiece> cut(const AttentionCall& c, int64_t sequences) {
  const int64_t group = c.heads / c.kv_heads;
  const auto workers = static_cast<double>(torch::stable::get_num_threads());
  const auto cost_of = [&](int64_t queries, int64_t lk, double heads) {
    const double pairs = static_cast<double>(queries) * static_cast<double>(lk);
    return heads * (50 + pairs * static_cast<double>(group * (c.dim + c.dim_v)) / 25 +
                    0.1 * static_cast<double>(lk * (c.dim + c.dim_v)));
  };
  double total = 0;
  for (int64_t b = 0; b < sequences; ++b) {
    total += cost_of(c.cu_q[b + 1] - c.cu_q[b], c.cu_k[b + 1] - c.cu_k[b], static_cast<double>(c.kv_heads));
  }
  const double limit = workers > 1 ? std::max(50e3, total / (8 * workers)) : 1e30;
  constexpr int64_t kLongTile = 20 * kRowBlock;  // bounds the memory for running sums of rows over several key tiles
  std::vector<AttentionPiece> pieces;
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t lq = c.cu_q[b + 1] - c.cu_q[b], lk = c.cu_k[b + 1] - c.cu_k[b];
    if (lq == 0) {
      continue;
    }
    const double per_head = cost_of(lq, lk, 1);
    const auto heads = std::max<int64_t>(1, static_cast<int64_t>(limit / per_head));
    int64_t tile = lq;
    if (per_head > limit) {
      tile = std::max<int64_t>(8, static_cast<int64_t>(limit / per_head * static_cast<double>(lq)) / kRowBlock) *
             kRowBlock;
    }
    if (lk > kKeyTile) {
      tile = std::min(tile, kLongTile);
    }
    for (int64_t h = 0; h < c.kv_heads; h += heads) {
      const int64_t h_end = std::min(h + heads, c.kv_heads);
      for (int64_t q = 0; q < lq; q += tile) {
        const int64_t q_end = std::min(q + tile, lq);
        pieces.push_back({b, h, h_end, q, q_end, cost_of(q_end - q, lk, static_cast<double>(h_end - h))});
      }
    }
  }
  return pieces;
}

}  // namespace

std::tuple<Tensor, Tensor> ragged_attention_fwd_cpu(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
    std::optional<Tensor> bias, double scale, bool causal, int64_t window_left, int64_t window_right, double dropout_p,
    std::optional<Tensor> seed) {
  AttentionArguments a =
      read_attention(q, k, v, cu_q, cu_k, bias, scale, causal, window_left, window_right, dropout_p, seed);
  AttentionCall& c = a.call;
  Tensor out = new_output(q, {q.size(0), c.heads, c.dim_v});
  Tensor lse = new_output(q, {q.size(0), c.heads}, compute_type(a.storage));
  c.out = out.mutable_data_ptr();
  c.lse = lse.mutable_data_ptr();
  const AttentionKernel& kernel = attention_kernel(active_isa(), a.storage);
  auto pieces = cut(c, c.sequences);
  run_by_cost(pieces, [&](const AttentionPiece& piece) {
    kernel.run(c, piece, scratch_of_thread(0, kernel.scratch(c, piece)));
  });
  return {out, lse};
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_ragged_attention_fwd", TORCH_BOX(&ragged_attention_fwd_cpu));
}

}  // namespace edgeops::ragged
