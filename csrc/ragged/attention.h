// SPDX-License-Identifier: Apache-2.0
// What the dispatcher (attention.cpp) and the inner loops (attention.inl.h) share: plain pointers and numbers.
#pragma once

#include <cstdint>

#include "../common/storage.h"

namespace edgeops::ragged {

// Dropout of weights: dropped where the counter's hash is below `threshold` = p * 2^32, else multiplied with `kept`.
struct DropoutCall {
  bool on;
  int64_t seed;
  uint32_t threshold;
  double kept;  // 1 / (1 - p)
};

// One op call. Strides count elements; the last dimension of q, k, v is dense.
struct AttentionCall {
  const void *q, *k, *v;
  void *out, *lse;  // out [Tq, Hq, Dv] dense, storage type; lse [Tq, Hq] dense, float or double
  const int64_t *cu_q, *cu_k;
  int64_t q_row, q_head, k_row, k_head, v_row, v_head;
  int64_t sequences, heads, kv_heads, dim, dim_v;
  const float* bias;  // float (double for f64 storage, read through bias64), strides 0 where broadcast
  const double* bias64;
  int64_t bias_b, bias_h, bias_i, bias_j;
  double scale;
  DropoutCall dropout;
  int64_t left, right;  // window: keys in [i + shift - left, i + shift + right]; negative = unlimited
};

// One unit of work: queries [q_begin, q_end) of one sequence for the query heads of kv heads [h_begin, h_end).
struct AttentionPiece {
  int64_t seq, h_begin, h_end, q_begin, q_end;
  double cost;  // nanoseconds, roughly
};

// One call of the backward op. `fwd` holds q, k, v and the rest of the forward call; its out and lse are unused.
struct AttentionGradCall {
  AttentionCall fwd;
  const void *grad_out, *out;  // [Tq, Hq, Dv], last dimension dense
  const void *lse, *grad_lse;  // [Tq, Hq] dense, compute type; grad_lse may be null
  int64_t go_row, go_head, out_row, out_head;
  void *dq, *dk, *dv;              // dense
  void* dbias;                     // dense in compute type, zeroed, or null
  int64_t db_b, db_h, db_i, db_j;  // 0 where broadcast
};

constexpr int64_t kKeyTile = 512;  // keys whose scores are held at once: one exact softmax for sequences up to this
constexpr int64_t kRowBlock = 18;  // query rows that share a pass over the packed keys
constexpr int64_t kRowSlots = 32;  // the same in whole vectors of any instruction set
constexpr int64_t kScoreStride = kKeyTile + 16;  // rows of the score block start in different cache sets

// Bytes of scratch a piece needs, and the kernel.
using AttentionScratch = int64_t (*)(const AttentionCall&, const AttentionPiece&);
using AttentionRun = void (*)(const AttentionCall&, const AttentionPiece&, char* scratch);

struct AttentionKernel {
  AttentionScratch scratch;
  AttentionRun run;
};

}  // namespace edgeops::ragged
