// SPDX-License-Identifier: Apache-2.0
// Inner loops of ragged attention, forward. Included once per instruction set, inside its namespace.
//
// For one sequence and kv head: keys are packed transposed into panels of NV vectors, values into the same panels along
// the head dimension; a block of query rows gets its whole row of scores (up to kKeyTile keys), one exact softmax, and
// one product with the values. Longer rows go over several key tiles with a running maximum and sum. Every output
// element is one chain of multiply-adds in key order, so it does not depend on how rows are grouped or who computes
// them.

#include "attention_tiles.inl.h"
//
#include "dropout.inl.h"

// State of the running softmax for a block of rows; arrays have kRowSlots elements.
template <class T>
struct RowState {
  T *top, *sum, *factor;  // maximum so far, sum of exponentials so far, what earlier results are multiplied with
};

template <class T, bool kNatural>
EDGEOPS_INLINE typename Lanes<T>::V vpower(typename Lanes<T>::V x) {
  return vexp2(kNatural ? x * T(kLog2e) : x);
}

// Softmax over whole vectors [from, ends[row]) of the block's score rows: scores become exp2(s - maximum), and -inf
// becomes 0. Scores are in units of log2(e), or natural with a bias, whose large values must not be scaled.
template <class T, bool kNatural>
EDGEOPS_INLINE void softmax_block(int64_t rows, T* s, int64_t from, const int64_t* ends, RowState<T> state) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n;
  const T none = -__builtin_inf();
  V fold[kRowSlots];
  alignas(64) T folded[kRowSlots];
  const int groups = static_cast<int>(round_up(rows, 8));
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = s + r * kScoreStride;
    const int64_t to = ends[r];
    V m0 = vload<T>(row + from), m1 = m0;
    int64_t j = from + n;
    for (; j + 2 * n <= to; j += 2 * n) {
      m0 = vmax<T>(m0, vload<T>(row + j));
      m1 = vmax<T>(m1, vload<T>(row + j + n));
    }
    if (j < to) {
      m0 = vmax<T>(m0, vload<T>(row + j));
    }
    fold[r] = vmax<T>(m0, m1);
  }
  for (int64_t r = rows; r < groups; ++r) {
    fold[r] = V{};
  }
  fold_lanes<T, true>(fold, groups, folded);
  for (int64_t r = 0; r < rows; r += n) {
    const V top = vload<T>(state.top + r);
    const V best = vmax<T>(top, vload<T>(folded + r));
    const V base = best == vset<T>(none) ? V{} : best;
    vstore<T>(state.factor + r, vpower<T, kNatural>(top - base));
    vstore<T>(state.top + r, best);
    vstore<T>(folded + r, base);
  }
  for (int64_t r = 0; r < rows; ++r) {
    T* row = s + r * kScoreStride;
    const V base = vset<T>(folded[r]);
    const int64_t to = ends[r];
    V s0 = {}, s1 = {};
    int64_t j = from;
    for (; j + 2 * n <= to; j += 2 * n) {
      const V e0 = vpower<T, kNatural>(vload<T>(row + j) - base);
      const V e1 = vpower<T, kNatural>(vload<T>(row + j + n) - base);
      vstore<T>(row + j, e0);
      vstore<T>(row + j + n, e1);
      s0 += e0;
      s1 += e1;
    }
    if (j < to) {
      const V e0 = vpower<T, kNatural>(vload<T>(row + j) - base);
      vstore<T>(row + j, e0);
      s0 += e0;
    }
    fold[r] = s0 + s1;
  }
  fold_lanes<T, false>(fold, groups, folded);
  for (int64_t r = 0; r < rows; r += n) {
    vstore<T>(state.sum + r, vload<T>(state.sum + r) * vload<T>(state.factor + r) + vload<T>(folded + r));
  }
}

// inverse[r] = 1 / sum, and lse in natural units; 0 and -inf for rows that saw no key.
template <class T, bool kNatural>
EDGEOPS_INLINE void finish_rows(int64_t rows, RowState<T> state, T* inverse, T* lse) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n;
  const V none = vset<T>(T(-__builtin_inf()));
  for (int64_t r = 0; r < rows; r += n) {
    const V top = vload<T>(state.top + r), sum = vload<T>(state.sum + r);
    vstore<T>(inverse + r, top == none ? V{} : T(1) / sum);
    vstore<T>(lse + r, top == none ? none : kNatural ? top + vlog2(sum) * T(kLn2) : (top + vlog2(sum)) * T(kLn2));
  }
}

template <class T>
EDGEOPS_INLINE void start_rows(RowState<T> state) {
  for (int64_t r = 0; r < kRowSlots; ++r) {
    state.top[r] = -__builtin_inf();
    state.sum[r] = 0;
  }
}

template <class T>
struct Buffers {
  T *keys, *values, *scores, *out, *top, *sum, *rows;
};

template <class St>
static int64_t attention_layout(
    const AttentionCall& c, const AttentionPiece& p, char* base, Buffers<typename St::T>& b) {
  typedef typename St::T T;
  const int64_t lk = c.cu_k[p.seq + 1] - c.cu_k[p.seq];
  const int64_t tile = lk < kKeyTile ? lk : kKeyTile;
  const int64_t blocks = lk > kKeyTile ? (p.q_end - p.q_begin + kRowBlock - 1) / kRowBlock * (c.heads / c.kv_heads) : 1;
  const int64_t held = blocks * kRowSlots;  // rows whose running results are kept between key tiles
  char* at = base;
  b.keys = take<T>(at, round_up(tile, Panel<T>::n) * c.dim);
  b.values = take<T>(at, tile * round_up(c.dim_v, Panel<T>::n));
  b.scores = take<T>(at, kRowBlock * kScoreStride);
  b.out = take<T>(at, held * round_up(c.dim_v, Panel<T>::n));
  b.top = take<T>(at, held);
  b.sum = take<T>(at, held);
  const int64_t wide = c.dim > c.dim_v ? c.dim : c.dim_v;
  b.rows = take<T>(at, sizeof(typename St::S) == sizeof(T) ? 0 : (tile > kRowBlock ? tile : kRowBlock) * wide);
  return at - base;
}

template <class St>
static int64_t attention_scratch(const AttentionCall& c, const AttentionPiece& p) {
  alignas(64) char nothing;
  Buffers<typename St::T> b;
  return attention_layout<St>(c, p, &nothing, b) + 64;
}

template <class St>
static void attention_run(const AttentionCall& c, const AttentionPiece& p, char* scratch) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr int w = Panel<T>::n;
  constexpr bool same = sizeof(S) == sizeof(T);
  Buffers<T> b;
  attention_layout<St>(c, p, reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(scratch), 64)), b);
  const int64_t q0 = c.cu_q[p.seq], k0 = c.cu_k[p.seq];
  const int64_t lq = c.cu_q[p.seq + 1] - q0, lk = c.cu_k[p.seq + 1] - k0;
  const int64_t group = c.heads / c.kv_heads;
  const int64_t dv_pad = round_up(c.dim_v, w);
  const int64_t row_blocks = (p.q_end - p.q_begin + kRowBlock - 1) / kRowBlock;
  const bool tiled = lk > kKeyTile;
  const bool natural = bias_of<T>(c) != nullptr;
  const T scale = static_cast<T>(natural ? c.scale : c.scale * kLog2e);
  // so few values, used by so few rows, are read in place: a packed copy costs more than it saves
  const bool values_in_place = same && c.dim_v % w == 0 && lk <= 16 && row_blocks * group == 1;
  const bool out_in_place = same && c.dim_v % w == 0 && !tiled;
  alignas(64) T factor[kRowSlots], inverse[kRowSlots], lse[kRowSlots];

  for (int64_t hk = p.h_begin; hk < p.h_end; ++hk) {
    for (int64_t t0 = 0; t0 == 0 || t0 < lk; t0 += kKeyTile) {
      const int64_t tile = lk - t0 < kKeyTile ? lk - t0 : kKeyTile;
      const bool last = t0 + tile >= lk;
      const T* values = b.values;
      int64_t values_ld = w, values_panel = w * tile;
      {
        int64_t ld;
        const S* k = static_cast<const S*>(c.k) + (k0 + t0) * c.k_row + hk * c.k_head;
        const T* rows = as_rows<St>(k, c.k_row, tile, c.dim, b.rows, ld);
        pack_keys<T>(rows, ld, tile, c.dim, b.keys);
        const S* v = static_cast<const S*>(c.v) + (k0 + t0) * c.v_row + hk * c.v_head;
        if (values_in_place) {
          values = reinterpret_cast<const T*>(v);
          values_ld = c.v_row;
          values_panel = w;
        } else {
          rows = as_rows<St>(v, c.v_row, tile, c.dim_v, b.rows, ld);
          pack_values<T>(rows, ld, tile, c.dim_v, b.values);
        }
      }
      for (int64_t g = 0; g < group; ++g) {
        const int64_t h = hk * group + g;
        for (int64_t block = 0; block < row_blocks; ++block) {
          const int64_t i0 = p.q_begin + block * kRowBlock;
          const int64_t rows = p.q_end - i0 < kRowBlock ? p.q_end - i0 : kRowBlock;
          const int64_t slot = tiled ? (g * row_blocks + block) * kRowSlots : 0;
          const RowState<T> state{b.top + slot, b.sum + slot, factor};
          const int64_t at = (q0 + i0) * c.heads + h;  // first row of the block in out and lse
          T* out = out_in_place ? static_cast<T*>(c.out) + at * c.dim_v : b.out + slot * dv_pad;
          const int64_t out_ld = out_in_place ? c.heads * c.dim_v : dv_pad;
          if (t0 == 0) {
            start_rows<T>(state);
            if (tiled) {
              __builtin_memset(out, 0, rows * dv_pad * sizeof(T));
            }
          }
          // keys of this tile that some row of the block may see
          int64_t first, end, ignored;
          allowed(c, i0, lq, lk, first, ignored);
          allowed(c, i0 + rows - 1, lq, lk, ignored, end);
          first = first < t0 ? 0 : first - t0;
          end = end - t0 > tile ? tile : end - t0;
          const Reach reach(c, i0, lq, lk, t0);
          int64_t ends[kRowBlock];
          if (first < end) {
            const int64_t from = first / w * w, to = round_up(end, Lanes<T>::n);
            row_ends<T>(c, i0, rows, lq, lk, t0, from, to, ends);
            int64_t ldq;
            const S* q = static_cast<const S*>(c.q) + (q0 + i0) * c.q_row + h * c.q_head;
            const T* q_rows = as_rows<St>(q, c.q_row, rows, c.dim, b.rows, ldq);
            block_scores<T, kScoreStride>(rows, q_rows, ldq, b.keys, c.dim, scale, from, to, reach, b.scores);
            if (const T* bias = bias_of<T>(c)) {
              bias += p.seq * c.bias_b + h * c.bias_h + i0 * c.bias_i + t0 * c.bias_j;
              add_bias<T, kScoreStride>(c, bias, rows, first, end, b.scores);
            }
            block_mask<T, kScoreStride>(c, i0, rows, lq, lk, t0, from, end, ends, b.scores);
            natural ? softmax_block<T, true>(rows, b.scores, from, ends, state)
                    : softmax_block<T, false>(rows, b.scores, from, ends, state);
          }
          if (first < end && c.dropout.on) {
            for (int64_t r = 0; r < rows; ++r) {
              const uint32_t row = dropout_row(c.dropout.seed, p.seq, h, i0 + r);
              const int64_t stop = ends[r] < end ? ends[r] : end;
              dropout_weights<T>(c.dropout, row, t0, first, stop, b.scores + r * kScoreStride);
            }
          }
          if (last) {
            natural ? finish_rows<T, true>(rows, state, inverse, lse)
                    : finish_rows<T, false>(rows, state, inverse, lse);
          }
          if (first < end && !tiled) {
            for (int64_t d = 0; d < c.dim_v; d += w) {
              for (MicroBlock m(rows); m.next();) {
                int64_t j = first, j_end = end;
                reach.keys(m.row, m.height, j, j_end);
                const T* v = values + d / w * values_panel + j * values_ld;
                const T* weights = b.scores + m.row * kScoreStride + j;
                T* target = out + m.row * out_ld + d;
                value_rows<T, kScoreStride, false>(
                    m.height, weights, v, values_ld, j_end - j, inverse + m.row, target, out_ld);
              }
            }
          } else if (first < end) {
            for (int64_t r = 0; r < rows; ++r) {
              if (factor[r] != T(1)) {
                for (int64_t d = 0; d < dv_pad; ++d) {
                  out[r * dv_pad + d] *= factor[r];
                }
              }
            }
            for (int64_t d = 0; d < c.dim_v; d += w) {
              for (MicroBlock m(rows); m.next();) {
                int64_t j = first, j_end = end;
                reach.keys(m.row, m.height, j, j_end);
                const T* v = values + d / w * values_panel + j * values_ld;
                const T* weights = b.scores + m.row * kScoreStride + j;
                T* target = out + m.row * out_ld + d;
                value_rows<T, kScoreStride, true>(m.height, weights, v, values_ld, j_end - j, nullptr, target, out_ld);
              }
            }
          } else if (!tiled) {
            for (int64_t r = 0; r < rows; ++r) {
              __builtin_memset(out + r * out_ld, 0, c.dim_v * sizeof(T));
            }
          }
          if (last) {
            for (int64_t r = 0; r < rows; ++r) {
              static_cast<T*>(c.lse)[at + r * c.heads] = lse[r];
              T* row = out + r * out_ld;
              if (tiled) {
                for (int64_t d = 0; d < c.dim_v; ++d) {
                  row[d] *= inverse[r];
                }
              }
              if (!out_in_place) {
                narrow<St>(row, static_cast<S*>(c.out) + (at + r * c.heads) * c.dim_v, c.dim_v);
              }
            }
          }
        }
      }
    }
  }
}
