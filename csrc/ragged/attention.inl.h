// SPDX-License-Identifier: Apache-2.0
// Inner loops of ragged attention, forward. Included once per instruction set, inside its namespace.
//
// For one sequence and kv head: keys are packed transposed into panels of NV vectors, values into the same panels along
// the head dimension; a block of query rows gets its whole row of scores (up to kKeyTile keys), one exact softmax, and
// one product with the values. Longer rows go over several key tiles with a running maximum and sum. Every output
// element is one chain of multiply-adds in key order, so it does not depend on how rows are grouped or who computes
// them.

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
constexpr int kMaxRows = 6;  // 6 x 2 vectors of accumulators + 2 + 1 fit in 16 registers

template <class T>
struct Panel {
  static constexpr int n = 2 * Lanes<T>::n;  // columns of a panel
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

// o[r, 0..NV*n) = (o if kAdd) + sum_j p[r, j] * v[j, :], times factor[r] unless kAdd; rows of v are ldv apart
template <class T, int MR, int NV, bool kAdd>
EDGEOPS_INLINE void value_tile(const T* p, const T* v, int64_t ldv, int64_t keys, const T* factor, T* o, int64_t ldo) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n;
  V acc[MR][NV] = {};
  if constexpr (kAdd) {
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
      vstore<T>(o + r * ldo + c * n, kAdd ? acc[r][c] : acc[r][c] * factor[r]);
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

template <class T, bool kAdd>
static void value_rows(
    int rows, const T* p, const T* v, int64_t ldv, int64_t keys, const T* factor, T* o, int64_t ldo) {
  switch (rows) {
    case 1:
      return value_tile<T, 1, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
    case 2:
      return value_tile<T, 2, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
    case 3:
      return value_tile<T, 3, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
    case 4:
      return value_tile<T, 4, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
    case 5:
      return value_tile<T, 5, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
    default:
      return value_tile<T, 6, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
  }
}

#if EDGEOPS_VB == 32
// dst[k * 16 + j] = rows[j * ld + k] for 8 x 8; rows beyond `last` are read as row `last`
EDGEOPS_INLINE void transpose8(const float* rows, int64_t ld, int64_t last, float* dst) {
  const float* r[8];
#pragma GCC unroll 8
  for (int64_t j = 0; j < 8; ++j) {
    r[j] = rows + (j < last ? j : last) * ld;
  }
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    a[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(r[j])), _mm_loadu_ps(r[j + 4]), 1);
    a[j + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(r[j] + 4)), _mm_loadu_ps(r[j + 4] + 4), 1);
  }
#pragma GCC unroll 2
  for (int h = 0; h < 8; h += 4) {
    b[h] = _mm256_unpacklo_ps(a[h], a[h + 1]);
    b[h + 1] = _mm256_unpackhi_ps(a[h], a[h + 1]);
    b[h + 2] = _mm256_unpacklo_ps(a[h + 2], a[h + 3]);
    b[h + 3] = _mm256_unpackhi_ps(a[h + 2], a[h + 3]);
    float* d = dst + h * 16;
    _mm256_storeu_ps(d, _mm256_shuffle_ps(b[h], b[h + 2], 0x44));
    _mm256_storeu_ps(d + 16, _mm256_shuffle_ps(b[h], b[h + 2], 0xEE));
    _mm256_storeu_ps(d + 32, _mm256_shuffle_ps(b[h + 1], b[h + 3], 0x44));
    _mm256_storeu_ps(d + 48, _mm256_shuffle_ps(b[h + 1], b[h + 3], 0xEE));
  }
}
#endif

// panels[p][k][j] = src[(p * Panel + j), k]. Columns beyond `keys` up to a whole vector repeat the last key: their
// scores are set to -inf before use.
template <class T>
static void pack_keys(const T* src, int64_t ld, int64_t keys, int64_t dim, T* panels) {
  constexpr int w = Panel<T>::n;
  for (int64_t j0 = 0; j0 < keys; j0 += w, panels += w * dim) {
    const int64_t have = keys - j0 < w ? keys - j0 : w;
    const T* rows = src + j0 * ld;
    const int64_t wanted = round_up(have, Lanes<T>::n);
    int64_t done = 0;
#if EDGEOPS_VB == 32
    if constexpr (sizeof(T) == 4) {
      done = dim / 8 * 8;
      for (int64_t j = 0; j < wanted; j += 8) {
        for (int64_t k = 0; k < done; k += 8) {
          transpose8(rows + j * ld + k, ld, have - 1 - j, panels + k * w + j);
        }
      }
    }
#endif
    if (done < dim) {
      for (int64_t j = 0; j < wanted; ++j) {
        const T* row = rows + (j < have ? j : have - 1) * ld;
        for (int64_t k = done; k < dim; ++k) {
          panels[k * w + j] = row[k];
        }
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

// State of the running softmax for a block of rows; arrays have kRowSlots elements.
template <class T>
struct RowState {
  T *top, *sum, *factor;  // maximum so far, sum of exponentials so far, what earlier results are multiplied with
};

template <class T, bool kNatural>
EDGEOPS_INLINE typename Lanes<T>::V vpower(typename Lanes<T>::V x) {
  return vexp2(kNatural ? x * T(kLog2e) : x);
}

// Softmax over whole vectors [from, to) of the block's score rows: scores become exp2(s - maximum), and -inf becomes 0.
// Scores are in units of log2(e), or natural with a bias, whose large values must not be scaled.
template <class T, bool kNatural>
EDGEOPS_INLINE void softmax_block(int64_t rows, T* s, int64_t from, int64_t to, RowState<T> state) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n;
  const T none = -__builtin_inf();
  V fold[kRowSlots];
  alignas(64) T folded[kRowSlots];
  const int groups = static_cast<int>(round_up(rows, 8));
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = s + r * kScoreStride;
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

// Rows of storage as rows of T: the tensor itself where the types agree, else widened into `room`.
template <class St>
EDGEOPS_INLINE const typename St::T* as_rows(
    const typename St::S* src, int64_t ld, int64_t rows, int64_t dim, typename St::T* room, int64_t& ld_out) {
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

// Adds the bias to rows of scores.
template <class T>
static void add_bias(const AttentionCall& c, const T* bias, int64_t rows, int64_t from, int64_t to, T* s) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = bias + r * c.bias_i;
    T* target = s + r * kScoreStride;
    if (c.bias_j == 1) {
      for (int64_t j = from; j < to; ++j) {
        target[j] += row[j];
      }
    } else {
      for (int64_t j = from; j < to; ++j) {
        target[j] += row[j * c.bias_j];
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

// Scores of the block's rows against keys [from, to) of the packed tile.
template <class T>
EDGEOPS_INLINE void block_scores(
    int64_t rows, const T* q, int64_t ldq, const T* keys, int64_t dim, T scale, int64_t from, int64_t to, T* s) {
  constexpr int w = Panel<T>::n;
  for (int64_t j = from; j < to; j += w) {
    for (MicroBlock m(rows); m.next();) {
      T* target = s + m.row * kScoreStride + j;
      const T* q_rows = q + m.row * ldq;
      if (j + w <= to) {
        score_rows<T, 2>(m.height, q_rows, ldq, keys + j * dim, dim, scale, target);
      } else {
        score_rows<T, 1>(m.height, q_rows, ldq, keys + j * dim, dim, scale, target);
      }
    }
  }
}

// Sets to -inf what the rows of the block may not see among columns [from, to); `end` bounds all rows.
template <class T>
EDGEOPS_INLINE void block_mask(
    const AttentionCall& c, int64_t i0, int64_t rows, int64_t lq, int64_t lk, int64_t t0, int64_t from, int64_t end,
    int64_t to, T* s) {
  const T none = -__builtin_inf();
  const bool whole = c.left < 0 && c.right < 0;
  for (int64_t r = 0; r < rows; ++r, s += kScoreStride) {
    int64_t row_end = end;
    if (!whole) {
      int64_t row_begin;
      allowed(c, i0 + r, lq, lk, row_begin, row_end);
      row_begin -= t0;
      row_end = row_end - t0 < from ? from : (row_end - t0 > end ? end : row_end - t0);
      for (int64_t j = from; j < row_begin && j < row_end; ++j) {
        s[j] = none;
      }
    }
    for (int64_t j = row_end; j < to; ++j) {
      s[j] = none;
    }
  }
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
          if (first < end) {
            const int64_t from = first / w * w, to = round_up(end, Lanes<T>::n);
            int64_t ldq;
            const S* q = static_cast<const S*>(c.q) + (q0 + i0) * c.q_row + h * c.q_head;
            const T* q_rows = as_rows<St>(q, c.q_row, rows, c.dim, b.rows, ldq);
            block_scores<T>(rows, q_rows, ldq, b.keys, c.dim, scale, from, to, b.scores);
            if (const T* bias = bias_of<T>(c)) {
              bias += p.seq * c.bias_b + h * c.bias_h + i0 * c.bias_i + t0 * c.bias_j;
              add_bias<T>(c, bias, rows, first, end, b.scores);
            }
            block_mask<T>(c, i0, rows, lq, lk, t0, from, end, to, b.scores);
            natural ? softmax_block<T, true>(rows, b.scores, from, to, state)
                    : softmax_block<T, false>(rows, b.scores, from, to, state);
          }
          if (last) {
            natural ? finish_rows<T, true>(rows, state, inverse, lse)
                    : finish_rows<T, false>(rows, state, inverse, lse);
          }
          if (first < end && !tiled) {
            for (int64_t d = 0; d < c.dim_v; d += w) {
              const T* v = values + d / w * values_panel + first * values_ld;
              for (MicroBlock m(rows); m.next();) {
                const T* weights = b.scores + m.row * kScoreStride + first;
                T* target = out + m.row * out_ld + d;
                value_rows<T, false>(m.height, weights, v, values_ld, end - first, inverse + m.row, target, out_ld);
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
              const T* v = values + d / w * values_panel + first * values_ld;
              for (MicroBlock m(rows); m.next();) {
                const T* weights = b.scores + m.row * kScoreStride + first;
                T* target = out + m.row * out_ld + d;
                value_rows<T, true>(m.height, weights, v, values_ld, end - first, nullptr, target, out_ld);
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
