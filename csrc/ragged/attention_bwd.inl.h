// SPDX-License-Identifier: Apache-2.0
// Inner loops of ragged attention, backward. Included once per instruction set, inside its namespace.
//
// One thread works on one sequence and kv head: for each tile of keys and block of query rows the scores are computed
// again, P = exp(S - lse), dS = P * (dO V^T - delta) with delta = sum_j P_j dP_j = dO . out, and then dV += P^T dO,
// dK += dS^T Q, dQ += dS K, all through 6 x 2 register tiles. Every element of a gradient is a sum in row or key order:
// no atomics, and the same bits in any batch with any number of threads.

#include "attention_tiles.inl.h"
//
#include "dropout.inl.h"

constexpr int64_t kGradKeys = 256;  // keys of a tile: five packed operands of it stay in the second-level cache
constexpr int64_t kGradRows = 36;   // query rows of a block: whole tiles of kMaxRows
constexpr int64_t kGradSlots = 64;  // the same in whole vectors of any instruction set
constexpr int kGradStride = kGradKeys + 16;

// o[r, :] = (o if kAdd) + sum_i p[i, r] * b[i, :] for MR keys r and one panel of columns
template <class T, int MR, bool kAdd>
EDGEOPS_INLINE void key_tile(const T* p, const T* b, int64_t ldb, int64_t rows, T* o, int64_t ldo) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n;
  V acc[MR][2] = {};  // a block's sum first, then added: shorter chains, smaller errors
  for (int64_t i = 0; i < rows; ++i) {
    const V b0 = vload<T>(b + i * ldb), b1 = vload<T>(b + i * ldb + n);
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const V a = vset<T>(p[i * kGradStride + r]);
      acc[r][0] += a * b0;
      acc[r][1] += a * b1;
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    vstore<T>(o + r * ldo, kAdd ? vload<T>(o + r * ldo) + acc[r][0] : acc[r][0]);
    vstore<T>(o + r * ldo + n, kAdd ? vload<T>(o + r * ldo + n) + acc[r][1] : acc[r][1]);
  }
}

template <class T, bool kAdd>
static void key_rows(int keys, const T* p, const T* b, int64_t ldb, int64_t rows, T* o, int64_t ldo) {
  switch (keys) {
    case 1:
      return key_tile<T, 1, kAdd>(p, b, ldb, rows, o, ldo);
    case 2:
      return key_tile<T, 2, kAdd>(p, b, ldb, rows, o, ldo);
    case 3:
      return key_tile<T, 3, kAdd>(p, b, ldb, rows, o, ldo);
    case 4:
      return key_tile<T, 4, kAdd>(p, b, ldb, rows, o, ldo);
    case 5:
      return key_tile<T, 5, kAdd>(p, b, ldb, rows, o, ldo);
    default:
      return key_tile<T, 6, kAdd>(p, b, ldb, rows, o, ldo);
  }
}

// Rows in panels: the tensor itself, or a packed copy in compute type.
template <class T>
struct Rows {
  T* at;
  int64_t row, panel;  // steps in elements
};

// sums[j, :] (+)= sum_i weights[i, j] * of[i, :] for keys j in [first, end)
template <class T, bool kAdd>
EDGEOPS_INLINE void add_keys(
    const T* weights, Rows<const T> of, int64_t rows, int64_t first, int64_t end, int64_t dim, const Reach& reach,
    Rows<T> sums) {
  constexpr int w = Panel<T>::n;
  for (int64_t d = 0; d < dim; d += w) {
    const T* b = of.at + d / w * of.panel;
    T* target = sums.at + d / w * sums.panel;
    for (MicroBlock m(end - first); m.next();) {
      const int64_t j = first + m.row;
      int64_t i, i_end;
      reach.rows(j, m.height, rows, i, i_end);
      const T* at = weights + i * kGradStride + j;
      key_rows<T, kAdd>(m.height, at, b + i * of.row, of.row, i_end - i, target + j * sums.row, sums.row);
    }
  }
}

// The sum of a vector's lanes, in order.
template <class T>
EDGEOPS_INLINE T lane_sum(typename Lanes<T>::V x) {
  T total = 0;
  for (int l = 0; l < Lanes<T>::n; ++l) {
    total += x[l];
  }
  return total;
}

template <class T>
EDGEOPS_INLINE T dot(const T* a, const T* b, int64_t n) {
  typedef typename Lanes<T>::V V;
  constexpr int w = Lanes<T>::n;
  V sum = {};
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    sum += vload<T>(a + i) * vload<T>(b + i);
  }
  T total = lane_sum<T>(sum);
  for (; i < n; ++i) {
    total += a[i] * b[i];
  }
  return total;
}

// The rows of a block on the way from scores to dS: s holds scores, then P; ds holds dO V^T, then dS times `scale`.
// `base` and s are in units of log2(e), or natural with a bias. What was not computed, behind a mask, is not used.
template <class T>
struct WeightRows {
  T *s, *ds;
  int64_t rows, from;
  const int64_t* ends;
  const T *base, *delta;
  T scale;
};

template <class T, bool kNatural>
EDGEOPS_INLINE typename Lanes<T>::V weight_of(const T* s, typename Lanes<T>::V base) {
  const typename Lanes<T>::V x = vload<T>(s) - base;
  return vexp2(kNatural ? x * T(kLog2e) : x);
}

// A tile of several: lse normalises, and delta = dO . out is given.
template <class T, bool kNatural>
EDGEOPS_INLINE void tile_weights(const WeightRows<T>& w) {
  typedef typename Lanes<T>::V V;
  for (int64_t r = 0; r < w.rows; ++r) {
    T *s = w.s + r * kGradStride, *ds = w.ds + r * kGradStride;
    const V base = vset<T>(w.base[r]), delta = vset<T>(w.delta[r]);
    for (int64_t j = w.from; j < w.ends[r]; j += Lanes<T>::n) {
      const V p = weight_of<T, kNatural>(s + j, base);
      const V grad = p * w.scale * (vload<T>(ds + j) - delta);
      vstore<T>(s + j, p);
      vstore<T>(ds + j, p == V{} ? V{} : grad);
    }
  }
}

// Whole rows are normalised again and give their own delta = sum_j P_j dP_j, free of the rounding of out and lse;
// `delta` holds only what is subtracted from it. Sums of eight rows at a time are folded and inverted together.
template <class T, bool kNatural>
EDGEOPS_INLINE void whole_weights(const WeightRows<T>& w) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n;
  V sums[kGradSlots], products[kGradSlots];
  alignas(64) T inverse[kGradSlots], delta[kGradSlots];
  for (int64_t r = 0; r < w.rows; ++r) {
    T *s = w.s + r * kGradStride, *ds = w.ds + r * kGradStride;
    const V base = vset<T>(w.base[r]);
    V sum = {}, product = {};
    for (int64_t j = w.from; j < w.ends[r]; j += n) {
      const V p = weight_of<T, kNatural>(s + j, base);
      const V one = p * vload<T>(ds + j);
      vstore<T>(s + j, p);
      sum += p;
      product += p == V{} ? V{} : one;
    }
    sums[r] = sum;
    products[r] = product;
  }
  const int groups = static_cast<int>(round_up(w.rows, 8));
  for (int64_t r = w.rows; r < groups; ++r) {
    sums[r] = products[r] = V{};
  }
  fold_lanes<T, false>(sums, groups, inverse);
  fold_lanes<T, false>(products, groups, delta);
  for (int64_t r = 0; r < w.rows; r += n) {
    const V sum = vload<T>(inverse + r);
    const V whole = sum == V{} ? V{} : T(1) / sum;
    vstore<T>(inverse + r, whole);
    vstore<T>(delta + r, vload<T>(delta + r) * whole - vload<T>(w.delta + r));
  }
  for (int64_t r = 0; r < w.rows; ++r) {
    T *s = w.s + r * kGradStride, *ds = w.ds + r * kGradStride;
    const V factor = vset<T>(inverse[r]), less = vset<T>(delta[r]);
    for (int64_t j = w.from; j < w.ends[r]; j += n) {
      const V p = vload<T>(s + j) * factor;
      const V grad = p * w.scale * (vload<T>(ds + j) - less);
      vstore<T>(s + j, p);
      vstore<T>(ds + j, p == V{} ? V{} : grad);
    }
  }
}

template <class T>
struct GradBuffers {
  T *keys, *values, *key_rows, *scores, *grads, *q_packed, *go_packed, *dk, *dv, *dq, *room;
};

template <class St>
static int64_t grad_layout(const AttentionGradCall& g, int64_t seq, char* base, GradBuffers<typename St::T>& b) {
  typedef typename St::T T;
  constexpr int64_t w = Panel<T>::n;
  const AttentionCall& c = g.fwd;
  const int64_t lq = c.cu_q[seq + 1] - c.cu_q[seq], lk = c.cu_k[seq + 1] - c.cu_k[seq];
  const int64_t tile = lk < kGradKeys ? lk : kGradKeys, group = c.heads / c.kv_heads;
  const int64_t dim = round_up(c.dim, w), dim_v = round_up(c.dim_v, w), wide = dim > dim_v ? dim : dim_v;
  const int64_t rows = lq < kGradRows ? lq : kGradRows;
  char* at = base;
  b.keys = take<T>(at, round_up(tile, w) * c.dim);
  b.values = take<T>(at, round_up(tile, w) * c.dim_v);
  b.key_rows = take<T>(at, tile * dim);
  b.scores = take<T>(at, rows * kGradStride);
  b.grads = take<T>(at, rows * kGradStride);
  b.q_packed = take<T>(at, rows * dim);
  b.go_packed = take<T>(at, rows * dim_v);
  b.dk = take<T>(at, tile * dim);
  b.dv = take<T>(at, tile * dim_v);
  b.dq = take<T>(at, (lk > kGradKeys ? group * round_up(lq, kGradRows) : rows) * dim);
  b.room = take<T>(at, sizeof(typename St::S) == sizeof(T) ? wide : (tile + 3 * rows) * wide);
  return at - base;
}

template <class St>
static int64_t grad_scratch(const AttentionGradCall& g, int64_t seq) {
  alignas(64) char nothing;
  GradBuffers<typename St::T> b;
  return grad_layout<St>(g, seq, &nothing, b) + 64;
}

// Rows of sums to a dense output.
template <class St>
static void write_rows(
    Rows<typename St::T> sums, int64_t rows, int64_t dim, typename St::T* room, typename St::S* out, int64_t out_row) {
  typedef typename St::T T;
  constexpr int64_t w = Panel<T>::n;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < dim; ++d) {
      room[d] = sums.at[d / w * sums.panel + r * sums.row + d % w];
    }
    narrow<St>(room, out + r * out_row, dim);
  }
}

template <class S>
static void zero_rows(S* out, int64_t rows, int64_t row, int64_t dim) {
  for (int64_t r = 0; r < rows; ++r) {
    __builtin_memset(out + r * row, 0, dim * sizeof(S));
  }
}

template <class St>
static void attention_grad_run(const AttentionGradCall& g, int64_t seq, int64_t hk, char* scratch) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr int64_t w = Panel<T>::n;
  constexpr bool same = sizeof(S) == sizeof(T);
  const AttentionCall& c = g.fwd;
  GradBuffers<T> b;
  grad_layout<St>(g, seq, reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(scratch), 64)), b);
  const int64_t q0 = c.cu_q[seq], k0 = c.cu_k[seq], lq = c.cu_q[seq + 1] - q0, lk = c.cu_k[seq + 1] - k0;
  const int64_t group = c.heads / c.kv_heads, row_blocks = (lq + kGradRows - 1) / kGradRows;
  const int64_t dim_pad = round_up(c.dim, w), dim_v_pad = round_up(c.dim_v, w);
  const int64_t wide = dim_pad > dim_v_pad ? dim_pad : dim_v_pad;
  const int64_t block_rows = lq < kGradRows ? lq : kGradRows;
  const bool tiled = lk > kGradKeys, natural = bias_of<T>(c) != nullptr;
  const T scale = static_cast<T>(c.scale), score_scale = static_cast<T>(natural ? c.scale : c.scale * kLog2e);
  const bool k_in_place = same && c.dim % w == 0, v_in_place = same && c.dim_v % w == 0;
  const bool q_in_place = k_in_place && !tiled;
  const int64_t dk_row = c.kv_heads * c.dim, dv_row = c.kv_heads * c.dim_v, dq_row = c.heads * c.dim;
  S* dk_out = static_cast<S*>(g.dk) + k0 * dk_row + hk * c.dim;
  S* dv_out = static_cast<S*>(g.dv) + k0 * dv_row + hk * c.dim_v;
  S* dq_out = static_cast<S*>(g.dq) + q0 * dq_row + hk * group * c.dim;
  if (lq == 0 || lk == 0) {
    zero_rows(dk_out, lk, dk_row, c.dim);
    zero_rows(dv_out, lk, dv_row, c.dim_v);
    for (int64_t h = 0; h < group; ++h) {
      zero_rows(dq_out + h * c.dim, lq, dq_row, c.dim);
    }
    return;
  }
  // so few rows are read in place: a packed copy costs more than it saves
  const bool few_keys = k_in_place && lk <= 16 && row_blocks * group == 1;
  const bool few_rows = lq <= 16;
  alignas(64) T ones[kGradSlots], base[kGradSlots], delta[kGradSlots];
  for (T& one : ones) {
    one = 1;
  }
  if (tiled) {
    __builtin_memset(b.dq, 0, group * row_blocks * kGradRows * dim_pad * sizeof(T));
  }

  for (int64_t t0 = 0; t0 < lk; t0 += kGradKeys) {
    const int64_t tile = lk - t0 < kGradKeys ? lk - t0 : kGradKeys;
    const bool last = t0 + tile >= lk;
    int64_t ld;
    const S* k = static_cast<const S*>(c.k) + (k0 + t0) * c.k_row + hk * c.k_head;
    const T* rows_k = as_rows<St>(k, c.k_row, tile, c.dim, b.room, ld);
    pack_keys<T>(rows_k, ld, tile, c.dim, b.keys);
    Rows<const T> keys{rows_k, ld, w};
    if (!few_keys) {
      pack_values<T>(rows_k, ld, tile, c.dim, b.key_rows);
      keys = {b.key_rows, w, w * tile};
    }
    const S* v = static_cast<const S*>(c.v) + (k0 + t0) * c.v_row + hk * c.v_head;
    const T* rows_v = as_rows<St>(v, c.v_row, tile, c.dim_v, b.room, ld);
    pack_keys<T>(rows_v, ld, tile, c.dim_v, b.values);
    const Rows<T> dk =
        k_in_place ? Rows<T>{reinterpret_cast<T*>(dk_out + t0 * dk_row), dk_row, w} : Rows<T>{b.dk, w, w * tile};
    const Rows<T> dv =
        v_in_place ? Rows<T>{reinterpret_cast<T*>(dv_out + t0 * dv_row), dv_row, w} : Rows<T>{b.dv, w, w * tile};
    bool started = false;
    for (int64_t gh = 0; gh < group; ++gh) {
      const int64_t h = hk * group + gh;
      for (int64_t block = 0; block < row_blocks; ++block) {
        const int64_t i0 = block * kGradRows, rows = lq - i0 < kGradRows ? lq - i0 : kGradRows;
        int64_t first, end, ignored;
        allowed(c, i0, lq, lk, first, ignored);
        allowed(c, i0 + rows - 1, lq, lk, ignored, end);
        first = first < t0 ? 0 : first - t0;
        end = end - t0 > tile ? tile : end - t0;
        const Rows<T> dq =
            q_in_place
                ? Rows<T>{reinterpret_cast<T*>(dq_out + i0 * dq_row + gh * c.dim), dq_row, w}
                : Rows<T>{b.dq + (tiled ? (gh * row_blocks + block) * kGradRows * dim_pad : 0), w, w * block_rows};
        if (first >= end) {
          if (!tiled) {
            zero_rows(dq_out + i0 * dq_row + gh * c.dim, rows, dq_row, c.dim);
          }
        } else {
          const int64_t from = first / w * w, to = round_up(end, Lanes<T>::n);
          const Reach reach(c, i0, lq, lk, t0);
          int64_t ends[kGradRows];
          row_ends<T>(c, i0, rows, lq, lk, t0, from, to, ends);
          int64_t ldq, ldg, ldo = 0;
          T* room = b.room + (same ? 0 : tile * wide);
          const S* q_at = static_cast<const S*>(c.q) + (q0 + i0) * c.q_row + h * c.q_head;
          const T* q_rows = as_rows<St>(q_at, c.q_row, rows, c.dim, room, ldq);
          const S* go_at = static_cast<const S*>(g.grad_out) + (q0 + i0) * g.go_row + h * g.go_head;
          const T* go_rows = as_rows<St>(go_at, g.go_row, rows, c.dim_v, room + (same ? 0 : rows * wide), ldg);
          const S* o_at = static_cast<const S*>(g.out) + (q0 + i0) * g.out_row + h * g.out_head;
          const T* o_rows =
              tiled ? as_rows<St>(o_at, g.out_row, rows, c.dim_v, room + (same ? 0 : 2 * rows * wide), ldo) : nullptr;
          Rows<const T> q_of{q_rows, ldq, w}, go_of{go_rows, ldg, w};
          if (!few_rows || c.dim % w != 0) {
            pack_values<T>(q_rows, ldq, rows, c.dim, b.q_packed);
            q_of = {b.q_packed, w, w * rows};
          }
          if (!few_rows || c.dim_v % w != 0) {
            pack_values<T>(go_rows, ldg, rows, c.dim_v, b.go_packed);
            go_of = {b.go_packed, w, w * rows};
          }
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = (q0 + i0 + r) * c.heads + h;
            const T lse = static_cast<const T*>(g.lse)[at];
            const T less = g.grad_lse == nullptr ? T(0) : static_cast<const T*>(g.grad_lse)[at];
            const bool dead = lse == -__builtin_inf();
            base[r] = dead ? T(__builtin_inf()) : natural ? lse : lse * T(kLog2e);
            delta[r] = dead ? T(0) : tiled ? dot<T>(go_rows + r * ldg, o_rows + r * ldo, c.dim_v) - less : less;
          }
          block_scores<T, kGradStride>(rows, q_rows, ldq, b.keys, c.dim, score_scale, from, to, reach, b.scores);
          block_scores<T, kGradStride>(rows, go_rows, ldg, b.values, c.dim_v, T(1), from, to, reach, b.grads);
          if (const T* bias = bias_of<T>(c)) {
            bias += seq * c.bias_b + h * c.bias_h + i0 * c.bias_i + t0 * c.bias_j;
            add_bias<T, kGradStride>(c, bias, rows, first, end, b.scores);
          }
          block_mask<T, kGradStride>(c, i0, rows, lq, lk, t0, from, end, ends, b.scores);
          const auto drop = [&](T* of) {
            for (int64_t r = 0; c.dropout.on && r < rows; ++r) {
              const uint32_t counter = dropout_row(c.dropout.seed, seq, h, i0 + r);
              dropout_weights<T>(c.dropout, counter, t0, from, ends[r] < end ? ends[r] : end, of + r * kGradStride);
            }
          };
          drop(b.grads);
          const WeightRows<T> weights{b.scores, b.grads, rows, from, ends, base, delta, natural ? T(1) : scale};
          if (tiled) {
            natural ? tile_weights<T, true>(weights) : tile_weights<T, false>(weights);
          } else {
            natural ? whole_weights<T, true>(weights) : whole_weights<T, false>(weights);
          }
          drop(b.scores);
          if (g.dbias != nullptr) {
            T* target = static_cast<T*>(g.dbias) + seq * g.db_b + h * g.db_h + i0 * g.db_i + t0 * g.db_j;
            for (int64_t r = 0; r < rows; ++r) {
              for (int64_t j = first; j < end && j < ends[r]; ++j) {
                target[r * g.db_i + j * g.db_j] += b.grads[r * kGradStride + j];
              }
            }
          }
          for (int64_t r = 0; natural && r < rows; ++r) {
            for (int64_t j = first; j < end && j < ends[r]; ++j) {
              b.grads[r * kGradStride + j] *= scale;
            }
          }
          if (!started && (first > 0 || end < tile)) {
            for (int64_t d = 0; d < c.dim; d += w) {
              zero_rows(dk.at + d / w * dk.panel, tile, dk.row, w);
            }
            for (int64_t d = 0; d < c.dim_v; d += w) {
              zero_rows(dv.at + d / w * dv.panel, tile, dv.row, w);
            }
            started = true;
          }
          if (started) {
            add_keys<T, true>(b.scores, go_of, rows, first, end, c.dim_v, reach, dv);
            add_keys<T, true>(b.grads, q_of, rows, first, end, c.dim, reach, dk);
          } else {
            add_keys<T, false>(b.scores, go_of, rows, first, end, c.dim_v, reach, dv);
            add_keys<T, false>(b.grads, q_of, rows, first, end, c.dim, reach, dk);
          }
          started = true;
          for (int64_t d = 0; d < c.dim; d += w) {
            T* target = dq.at + d / w * dq.panel;
            for (MicroBlock m(rows); m.next();) {
              int64_t j = first, j_end = end;
              reach.keys(m.row, m.height, j, j_end);
              const T* key = keys.at + d / w * keys.panel + j * keys.row;
              const T* ds = b.grads + m.row * kGradStride + j;
              T* o = target + m.row * dq.row;
              if (tiled) {
                value_rows<T, kGradStride, true>(m.height, ds, key, keys.row, j_end - j, nullptr, o, dq.row);
              } else {
                value_rows<T, kGradStride, false>(m.height, ds, key, keys.row, j_end - j, ones + m.row, o, dq.row);
              }
            }
          }
          if (!tiled && !q_in_place) {
            write_rows<St>(dq, rows, c.dim, b.room, dq_out + i0 * dq_row + gh * c.dim, dq_row);
          }
        }
        if (tiled && last) {
          write_rows<St>(dq, rows, c.dim, b.room, dq_out + i0 * dq_row + gh * c.dim, dq_row);
        }
      }
    }
    if (!started) {
      zero_rows(dk_out + t0 * dk_row, tile, dk_row, c.dim);
      zero_rows(dv_out + t0 * dv_row, tile, dv_row, c.dim_v);
      continue;
    }
    if (!k_in_place) {
      write_rows<St>(dk, tile, c.dim, b.room, dk_out + t0 * dk_row, dk_row);
    }
    if (!v_in_place) {
      write_rows<St>(dv, tile, c.dim_v, b.room, dv_out + t0 * dv_row, dv_row);
    }
  }
}
