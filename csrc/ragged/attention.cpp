// SPDX-License-Identifier: Apache-2.0
// _ragged_attention_fwd on the CPU: checks, the list of work pieces, one parallel region.
#include "attention.h"

#include <cmath>
#include <cstdlib>
#include <memory>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "attention_isa.h"
#include "offsets.h"

namespace edgeops::ragged {
namespace {

using torch::headeronly::ScalarType;
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

Tensor dense_rows(const Tensor& x) {
  return x.size(2) <= 1 || x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

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

struct FreeDeleter {
  void operator()(char* p) const {
    std::free(p);
  }
};

// Scratch memory of one thread, kept between calls: an op runs thousands of times a second.
char* scratch_of_thread(int64_t bytes) {
  thread_local std::unique_ptr<char, FreeDeleter> memory;
  thread_local int64_t held = 0;
  if (bytes > held) {
    memory.reset(static_cast<char*>(std::malloc(static_cast<size_t>(bytes))));
    held = memory ? bytes : 0;
    if (!memory) {
      throw std::bad_alloc();
    }
  }
  return memory.get();
}

}  // namespace

std::tuple<Tensor, Tensor> ragged_attention_fwd_cpu(
    const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& cu_q, const Tensor& cu_k,
    std::optional<Tensor> bias, double scale, bool causal, int64_t window_left, int64_t window_right) {
  check_shapes(q_in, k_in, v_in);
  const auto starts_q = read_offsets(cu_q, q_in.size(0), kWho, "cu_q");
  const auto starts_k = read_offsets(cu_k, k_in.size(0), kWho, "cu_k");
  const auto sequences = static_cast<int64_t>(starts_q.size()) - 1;
  EDGEOPS_CHECK(
      starts_k.size() == starts_q.size(), ValueError, kWho, "cu_q and cu_k must describe the same number of sequences",
      std::to_string(sequences) + " and " + std::to_string(starts_k.size() - 1), "Build both from one batch.");
  const Tensor q = dense_rows(q_in), k = dense_rows(k_in), v = dense_rows(v_in);
  const Storage storage = *storage_of(q.scalar_type());
  const auto lse_type = compute_type(storage);

  Tensor out = new_output(q, {q.size(0), q.size(1), v.size(2)});
  Tensor lse = new_output(q, {q.size(0), q.size(1)}, lse_type);
  AttentionCall c{};
  if (bias.has_value()) {
    check_bias(*bias, q, sequences, longest(starts_q), longest(starts_k));
    if (bias->scalar_type() != lse_type) {
      bias = torch::stable::to(*bias, lse_type);
    }
    const auto stride = [&](int64_t d) { return bias->size(d) == 1 ? 0 : bias->stride(d); };
    c.bias_b = stride(0);
    c.bias_h = stride(1);
    c.bias_i = stride(2);
    c.bias_j = stride(3);
    if (storage == Storage::f64) {
      c.bias64 = static_cast<const double*>(bias->const_data_ptr());
    } else {
      c.bias = static_cast<const float*>(bias->const_data_ptr());
    }
  }
  c.q = q.const_data_ptr();
  c.k = k.const_data_ptr();
  c.v = v.const_data_ptr();
  c.out = out.mutable_data_ptr();
  c.lse = lse.mutable_data_ptr();
  c.cu_q = starts_q.data();
  c.cu_k = starts_k.data();
  c.q_row = q.stride(0);
  c.q_head = q.stride(1);
  c.k_row = k.stride(0);
  c.k_head = k.stride(1);
  c.v_row = v.stride(0);
  c.v_head = v.stride(1);
  c.heads = q.size(1);
  c.kv_heads = k.size(1);
  c.dim = q.size(2);
  c.dim_v = v.size(2);
  c.scale = scale;
  constexpr int64_t kWide = int64_t{1} << 48;  // wider than any sequence, and far from overflow
  c.left = window_left < 0 ? -1 : std::min(window_left, kWide);
  c.right = causal ? 0 : (window_right < 0 ? -1 : std::min(window_right, kWide));

  const AttentionKernel& kernel = attention_kernel(active_isa(), storage);
  auto pieces = cut(c, sequences);
  run_by_cost(
      pieces, [&](const AttentionPiece& piece) { kernel.run(c, piece, scratch_of_thread(kernel.scratch(c, piece))); });
  return {out, lse};
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_ragged_attention_fwd", TORCH_BOX(&ragged_attention_fwd_cpu));
}

}  // namespace edgeops::ragged
