// SPDX-License-Identifier: Apache-2.0
// Inner loops of ragged attention, forward. Included once per instruction set, inside its namespace.
//
// For one sequence and kv head: keys are packed transposed into panels of NV vectors, values into the same panels along
// the head dimension; a block of query rows gets its whole row of scores (up to kKeyTile keys), one exact softmax, and
// one product with the values. Longer rows go over several key tiles with a running maximum and sum. Every output
// element is one chain of multiply-adds in key order, so it does not depend on how rows are grouped or who computes them.

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
constexpr int kMaxRows = 6; // 6 x 2 vectors of accumulators + 2 + 1 fit in 16 registers

template <class T>
struct Panel {
  static constexpr int n = 2 * Lanes<T>::n; // columns of a panel
};

EDGEOPS_INLINE int64_t round_up(int64_t x, int64_t to) {
  return (x + to - 1) / to * to;
}

// s[r, 0..NV*n) = scale * sum_k q[r, k] * panel[k, :]
template <class T, int MR, int NV>
EDGEOPS_INLINE void score_tile(const T* q, int64_t ldq, const T* panel, int64_t dim, T scale, T* s) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n;
  V acc[MR][NV] = {};
  for (int64_t k = 0; k < dim; ++k) {
    V b[NV];
#pragma GCC unroll 2
    for (int c = 0; c < NV; ++c) {
      b[c] = vload<T>(panel + k * Panel<T>::n + c * n);
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const V a = vset<T>(q[r * ldq + k]);
#pragma GCC unroll 2
      for (int c = 0; c < NV; ++c) {
        acc[r][c] += a * b[c];
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < NV; ++c) {
      vstore<T>(s + r * kScoreStride + c * n, acc[r][c] * scale);
    }
  }
}

// o[r, 0..NV*n) (+)= sum_j p[r, j] * v[j, :], v rows ldv apart
template <class T, int MR, int NV>
EDGEOPS_INLINE void value_tile(const T* p, const T* v, int64_t ldv, int64_t keys, bool add, T* o, int64_t ldo) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n;
  V acc[MR][NV] = {};
  if (add) {
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 2
      for (int c = 0; c < NV; ++c) {
        acc[r][c] = vload<T>(o + r * ldo + c * n);
      }
    }
  }
  for (int64_t j = 0; j < keys; ++j) {
    V b[NV];
#pragma GCC unroll 2
    for (int c = 0; c < NV; ++c) {
      b[c] = vload<T>(v + j * ldv + c * n);
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const V a = vset<T>(p[r * kScoreStride + j]);
#pragma GCC unroll 2
      for (int c = 0; c < NV; ++c) {
        acc[r][c] += a * b[c];
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < NV; ++c) {
      vstore<T>(o + r * ldo + c * n, acc[r][c]);
    }
  }
}

template <class T, int NV>
static void score_rows(int rows, const T* q, int64_t ldq, const T* panel, int64_t dim, T scale, T* s) {
  switch (rows) {
    case 1:
      return score_tile<T, 1, NV>(q, ldq, panel, dim, scale, s);
    case 2:
      return score_tile<T, 2, NV>(q, ldq, panel, dim, scale, s);
    case 3:
      return score_tile<T, 3, NV>(q, ldq, panel, dim, scale, s);
    case 4:
      return score_tile<T, 4, NV>(q, ldq, panel, dim, scale, s);
    case 5:
      return score_tile<T, 5, NV>(q, ldq, panel, dim, scale, s);
    default:
      return score_tile<T, 6, NV>(q, ldq, panel, dim, scale, s);
  }
}

template <class T, int NV>
static void value_rows(int rows, const T* p, const T* v, int64_t ldv, int64_t keys, bool add, T* o, int64_t ldo) {
  switch (rows) {
    case 1:
      return value_tile<T, 1, NV>(p, v, ldv, keys, add, o, ldo);
    case 2:
      return value_tile<T, 2, NV>(p, v, ldv, keys, add, o, ldo);
    case 3:
      return value_tile<T, 3, NV>(p, v, ldv, keys, add, o, ldo);
    case 4:
      return value_tile<T, 4, NV>(p, v, ldv, keys, add, o, ldo);
    case 5:
      return value_tile<T, 5, NV>(p, v, ldv, keys, add, o, ldo);
    default:
      return value_tile<T, 6, NV>(p, v, ldv, keys, add, o, ldo);
  }
}

#if EDGEOPS_VB == 32
// dst[k * 16 + j] = row j of src at k, for an 8 x 8 block
EDGEOPS_INLINE void transpose8(const float* src, int64_t ld, float* dst) {
  const __m256 r0 = _mm256_loadu_ps(src), r1 = _mm256_loadu_ps(src + ld), r2 = _mm256_loadu_ps(src + 2 * ld),
               r3 = _mm256_loadu_ps(src + 3 * ld), r4 = _mm256_loadu_ps(src + 4 * ld),
               r5 = _mm256_loadu_ps(src + 5 * ld), r6 = _mm256_loadu_ps(src + 6 * ld),
               r7 = _mm256_loadu_ps(src + 7 * ld);
  const __m256 a0 = _mm256_unpacklo_ps(r0, r1), a1 = _mm256_unpackhi_ps(r0, r1), a2 = _mm256_unpacklo_ps(r2, r3),
               a3 = _mm256_unpackhi_ps(r2, r3), a4 = _mm256_unpacklo_ps(r4, r5), a5 = _mm256_unpackhi_ps(r4, r5),
               a6 = _mm256_unpacklo_ps(r6, r7), a7 = _mm256_unpackhi_ps(r6, r7);
  const __m256 b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xEE),
               b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xEE),
               b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xEE),
               b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xEE);
  _mm256_storeu_ps(dst, _mm256_permute2f128_ps(b0, b4, 0x20));
  _mm256_storeu_ps(dst + 16, _mm256_permute2f128_ps(b1, b5, 0x20));
  _mm256_storeu_ps(dst + 32, _mm256_permute2f128_ps(b2, b6, 0x20));
  _mm256_storeu_ps(dst + 48, _mm256_permute2f128_ps(b3, b7, 0x20));
  _mm256_storeu_ps(dst + 64, _mm256_permute2f128_ps(b0, b4, 0x31));
  _mm256_storeu_ps(dst + 80, _mm256_permute2f128_ps(b1, b5, 0x31));
  _mm256_storeu_ps(dst + 96, _mm256_permute2f128_ps(b2, b6, 0x31));
  _mm256_storeu_ps(dst + 112, _mm256_permute2f128_ps(b3, b7, 0x31));
}
#endif

// panels[p][k][j] = src[(p * Panel + j), k]; columns beyond `keys` become 0
template <class T>
static void pack_keys(const T* src, int64_t ld, int64_t keys, int64_t dim, T* panels) {
  constexpr int w = Panel<T>::n;
  for (int64_t j0 = 0; j0 < keys; j0 += w, panels += w * dim) {
    const int64_t have = keys - j0 < w ? keys - j0 : w;
    const T* rows = src + j0 * ld;
    int64_t j = 0;
#if EDGEOPS_VB == 32
    if constexpr (sizeof(T) == 4) {
      for (; j + 8 <= have; j += 8) {
        int64_t k = 0;
        for (; k + 8 <= dim; k += 8) {
          transpose8(rows + j * ld + k, ld, panels + k * w + j);
        }
        for (; k < dim; ++k) {
          for (int64_t jj = j; jj < j + 8; ++jj) {
            panels[k * w + jj] = rows[jj * ld + k];
          }
        }
      }
    }
#endif
    for (; j < w; ++j) {
      for (int64_t k = 0; k < dim; ++k) {
        panels[k * w + j] = j < have ? rows[j * ld + k] : T(0);
      }
    }
  }
}

// panels[p][j][c] = src[j, p * Panel + c]; columns beyond `dim` become 0
template <class T>
static void pack_values(const T* src, int64_t ld, int64_t keys, int64_t dim, T* panels) {
  constexpr int w = Panel<T>::n;
  constexpr int n = Lanes<T>::n;
  for (int64_t c0 = 0; c0 < dim; c0 += w, panels += w * keys) {
    if (c0 + w <= dim) {
      for (int64_t j = 0; j < keys; ++j) {
        vstore<T>(panels + j * w, vload<T>(src + j * ld + c0));
        vstore<T>(panels + j * w + n, vload<T>(src + j * ld + c0 + n));
      }
    } else {
      for (int64_t j = 0; j < keys; ++j) {
        for (int64_t c = 0; c < w; ++c) {
          panels[j * w + c] = c0 + c < dim ? src[j * ld + c0 + c] : T(0);
        }
      }
    }
  }
}

// Softmax of columns [begin, end) of a score row held over whole vectors [from, to): the row becomes exp2(s - max),
// 0 outside [begin, end). Updates the running maximum and sum; returns the factor for what was summed before.
template <class T>
EDGEOPS_INLINE T softmax_row(T* s, int64_t from, int64_t to, int64_t begin, int64_t end, T& top, T& sum) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n;
  const T none = -__builtin_inf();
  for (int64_t j = from; j < begin; ++j) {
    s[j] = none;
  }
  for (int64_t j = end; j < to; ++j) {
    s[j] = none;
  }
  V m0 = vset<T>(none), m1 = m0;
  int64_t j = from;
  for (; j + 2 * n <= to; j += 2 * n) {
    m0 = vmax(m0, vload<T>(s + j));
    m1 = vmax(m1, vload<T>(s + j + n));
  }
  for (; j < to; j += n) {
    m0 = vmax(m0, vload<T>(s + j));
  }
  T best = hmax<T>(vmax(m0, m1));
  best = top > best ? top : best;
  const T base = best == none ? T(0) : best;
  const V shift = vset<T>(base);
  V s0 = {}, s1 = {};
  for (j = from; j + 2 * n <= to; j += 2 * n) {
    const V e0 = vexp2(vload<T>(s + j) - shift);
    const V e1 = vexp2(vload<T>(s + j + n) - shift);
    vstore<T>(s + j, e0);
    vstore<T>(s + j + n, e1);
    s0 += e0;
    s1 += e1;
  }
  for (; j < to; j += n) {
    const V e0 = vexp2(vload<T>(s + j) - shift);
    vstore<T>(s + j, e0);
    s0 += e0;
  }
  V before = vset<T>(top - base);
  const T factor = vexp2(before)[0];
  sum = sum * factor + hsum<T>(s0 + s1);
  top = best;
  return factor;
}

// Keys [begin, end) that query i of a sequence may see.
EDGEOPS_INLINE void allowed(const AttentionCall& c, int64_t i, int64_t lq, int64_t lk, int64_t& begin, int64_t& end) {
  const int64_t position = i + lk - lq;
  begin = c.left < 0 ? 0 : position - c.left;
  end = c.right < 0 ? lk : position + c.right + 1;
  begin = begin < 0 ? 0 : (begin > lk ? lk : begin);
  end = end < begin ? begin : (end > lk ? lk : end);
}

template <class T>
EDGEOPS_INLINE const T* bias_of(const AttentionCall& c) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return c.bias;
  } else {
    return c.bias64;
  }
}

template <class T>
struct Buffers {
  T *keys, *values, *scores, *out, *top, *sum, *rows;
};

// The next `count` elements of the scratch memory, a cache line apart from the last ones.
template <class T>
EDGEOPS_INLINE T* take(char*& at, int64_t count) {
  T* here = reinterpret_cast<T*>(at);
  at += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
  return here;
}

template <class St>
static int64_t attention_layout(const AttentionCall& c, const AttentionPiece& p, char* base, Buffers<typename St::T>& b) {
  typedef typename St::T T;
  const int64_t lk = c.cu_k[p.seq + 1] - c.cu_k[p.seq];
  const int64_t tile = lk < kKeyTile ? lk : kKeyTile;
  const int64_t tile_pad = round_up(tile, Panel<T>::n);
  const int64_t rows = (p.q_end - p.q_begin) * (c.heads / c.kv_heads);
  const int64_t held = lk > kKeyTile ? rows : kRowBlock;
  char* at = base;
  b.keys = take<T>(at, tile_pad * c.dim);
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

// Rows of storage as rows of T: the tensor itself where the types agree, else widened into `room`.
template <class St>
EDGEOPS_INLINE const typename St::T*
as_rows(const typename St::S* src, int64_t ld, int64_t rows, int64_t dim, typename St::T* room, int64_t& ld_out) {
  if constexpr (sizeof(typename St::S) == sizeof(typename St::T)) {
    ld_out = ld;
    return src;
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      widen<St>(src + r * ld, room + r * dim, dim);
    }
    ld_out = dim;
    return room;
  }
}

// Adds log2(e) * bias to rows of scores.
template <class T>
static void add_bias(const AttentionCall& c, const T* bias, int64_t rows, int64_t from, int64_t to, T* s) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = bias + r * c.bias_i;
    if (c.bias_j == 1) {
      for (int64_t j = from; j < to; ++j) {
        s[r * kScoreStride + j] += T(kLog2e) * row[j];
      }
    } else {
      for (int64_t j = from; j < to; ++j) {
        s[r * kScoreStride + j] += T(kLog2e) * row[j * c.bias_j];
      }
    }
  }
}

// `count` rows cut into blocks of at most kMaxRows of nearly equal height: for (MicroBlock m(rows); m.next();) ...
struct MicroBlock {
  int64_t count, blocks, index = -1, row = 0;
  int height = 0;
  EDGEOPS_INLINE_MEMBER explicit MicroBlock(int64_t rows) : count(rows), blocks((rows + kMaxRows - 1) / kMaxRows) {}
  EDGEOPS_INLINE_MEMBER bool next() {
    row += height;
    ++index;
    height = static_cast<int>(count / blocks + (index < count % blocks));
    return index < blocks;
  }
};

template <class St>
static void attention_run(const AttentionCall& c, const AttentionPiece& p, char* scratch) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr int n = Lanes<T>::n;
  constexpr int w = Panel<T>::n;
  Buffers<T> b;
  attention_layout<St>(c, p, reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(scratch), 64)), b);
  const int64_t q0 = c.cu_q[p.seq], k0 = c.cu_k[p.seq];
  const int64_t lq = c.cu_q[p.seq + 1] - q0, lk = c.cu_k[p.seq + 1] - k0;
  const int64_t group = c.heads / c.kv_heads;
  const int64_t dv_pad = round_up(c.dim_v, w);
  const int64_t queries = p.q_end - p.q_begin;
  const bool tiled = lk > kKeyTile;
  const T scale = static_cast<T>(c.scale * kLog2e);
  // with few query rows a packed copy of the values costs more than it saves
  const bool direct = sizeof(S) == sizeof(T) && c.dim_v % w == 0 && queries * group <= 2 * kRowBlock;

  for (int64_t hk = p.h_begin; hk < p.h_end; ++hk) {
    if (tiled) {
      for (int64_t r = 0; r < queries * group; ++r) {
        b.top[r] = -__builtin_inf();
        b.sum[r] = 0;
      }
      __builtin_memset(b.out, 0, queries * group * dv_pad * sizeof(T));
    }
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
        if (direct) {
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
        for (int64_t i0 = p.q_begin; i0 < p.q_end; i0 += kRowBlock) {
          const int64_t rows = p.q_end - i0 < kRowBlock ? p.q_end - i0 : kRowBlock;
          const int64_t slot = tiled ? g * queries + (i0 - p.q_begin) : 0;
          T* out = b.out + slot * dv_pad;
          T *top = b.top + slot, *sum = b.sum + slot;
          if (!tiled) {
            for (int64_t r = 0; r < rows; ++r) {
              top[r] = -__builtin_inf();
              sum[r] = 0;
            }
          }
          // keys of this tile that some row of the block may see
          int64_t first, end, ignored;
          allowed(c, i0, lq, lk, first, ignored);
          allowed(c, i0 + rows - 1, lq, lk, ignored, end);
          first = first < t0 ? 0 : first - t0;
          end = end - t0 > tile ? tile : end - t0;
          if (first < end) {
            const int64_t from = first / w * w, to = round_up(end, n);
            int64_t ldq;
            const S* q = static_cast<const S*>(c.q) + (q0 + i0) * c.q_row + h * c.q_head;
            const T* qs = as_rows<St>(q, c.q_row, rows, c.dim, b.rows, ldq);
            for (int64_t j = from; j < to; j += w) {
              for (MicroBlock m(rows); m.next();) {
                T* s = b.scores + m.row * kScoreStride + j;
                const T* q_rows = qs + m.row * ldq;
                if (j + w <= to) {
                  score_rows<T, 2>(m.height, q_rows, ldq, b.keys + j * c.dim, c.dim, scale, s);
                } else {
                  score_rows<T, 1>(m.height, q_rows, ldq, b.keys + j * c.dim, c.dim, scale, s);
                }
              }
            }
            const T* bias = bias_of<T>(c);
            if (bias != nullptr) {
              add_bias<T>(
                  c, bias + p.seq * c.bias_b + h * c.bias_h + i0 * c.bias_i + t0 * c.bias_j, rows, first, end, b.scores);
            }
            for (int64_t r = 0; r < rows; ++r) {
              int64_t row_first, row_end;
              allowed(c, i0 + r, lq, lk, row_first, row_end);
              row_first = row_first - t0 < from ? from : (row_first - t0 > to ? to : row_first - t0);
              row_end = row_end - t0 > end ? end : (row_end - t0 < row_first ? row_first : row_end - t0);
              const T factor =
                  softmax_row<T>(b.scores + r * kScoreStride, from, to, row_first, row_end, top[r], sum[r]);
              if (tiled && factor != T(1)) {
                for (int64_t d = 0; d < dv_pad; ++d) {
                  out[r * dv_pad + d] *= factor;
                }
              }
            }
            for (int64_t d = 0; d < c.dim_v; d += w) {
              const T* v = values + d / w * values_panel + first * values_ld;
              for (MicroBlock m(rows); m.next();) {
                const T* weights = b.scores + m.row * kScoreStride + first;
                T* target = out + m.row * dv_pad + d;
                value_rows<T, 2>(m.height, weights, v, values_ld, end - first, tiled, target, dv_pad);
              }
            }
          }
          if (last) {
            for (int64_t r = 0; r < rows; ++r) {
              T* row = out + r * dv_pad;
              const bool empty = top[r] == -__builtin_inf();
              const T inverse = empty ? T(0) : T(1) / sum[r];
              for (int64_t d = 0; d < c.dim_v; ++d) {
                row[d] = empty ? T(0) : row[d] * inverse;
              }
              const int64_t at = (q0 + i0 + r) * c.heads + h;
              narrow<St>(row, static_cast<S*>(c.out) + at * c.dim_v, c.dim_v);
              static_cast<T*>(c.lse)[at] =
                  empty ? -T(__builtin_inf()) : static_cast<T>(kLn2 * (double(top[r]) + __builtin_log2(double(sum[r]))));
            }
          }
        }
      }
    }
  }
}
