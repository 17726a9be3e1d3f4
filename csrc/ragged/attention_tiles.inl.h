// SPDX-License-Identifier: Apache-2.0
// What the forward and backward loops of ragged attention share: register tiles, packing, masks. Included once per
// instruction set by attention.inl.h and attention_bwd.inl.h.

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

// s[r, 0..NV*n) = scale * sum_k q[r, k] * panel[k, :]; rows of s are LDS apart
template <class T, int LDS, int MR, int NV>
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
      vstore<T>(s + r * LDS + c * n, acc[r][c] * scale);
    }
  }
}

// o[r, 0..NV*n) = (o if kAdd) + sum_j p[r, j] * v[j, :], times factor[r] unless kAdd; rows of v are ldv apart
template <class T, int LDS, int MR, int NV, bool kAdd>
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
      const V a = vset<T>(p[r * LDS + j]);
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

template <class T, int LDS, int NV>
static void score_rows(int rows, const T* q, int64_t ldq, const T* panel, int64_t dim, T scale, T* s) {
  switch (rows) {
    case 1:
      return score_tile<T, LDS, 1, NV>(q, ldq, panel, dim, scale, s);
    case 2:
      return score_tile<T, LDS, 2, NV>(q, ldq, panel, dim, scale, s);
    case 3:
      return score_tile<T, LDS, 3, NV>(q, ldq, panel, dim, scale, s);
    case 4:
      return score_tile<T, LDS, 4, NV>(q, ldq, panel, dim, scale, s);
    case 5:
      return score_tile<T, LDS, 5, NV>(q, ldq, panel, dim, scale, s);
    default:
      return score_tile<T, LDS, 6, NV>(q, ldq, panel, dim, scale, s);
  }
}

template <class T, int LDS, bool kAdd>
static void value_rows(
    int rows, const T* p, const T* v, int64_t ldv, int64_t keys, const T* factor, T* o, int64_t ldo) {
  switch (rows) {
    case 1:
      return value_tile<T, LDS, 1, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
    case 2:
      return value_tile<T, LDS, 2, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
    case 3:
      return value_tile<T, LDS, 3, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
    case 4:
      return value_tile<T, LDS, 4, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
    case 5:
      return value_tile<T, LDS, 5, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
    default:
      return value_tile<T, LDS, 6, 2, kAdd>(p, v, ldv, keys, factor, o, ldo);
  }
}

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
          transpose8(rows + j * ld + k, ld, have - 1 - j, panels + k * w + j, w);
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

// The next `count` elements of the scratch memory, a cache line apart from the last ones.
template <class T>
EDGEOPS_INLINE T* take(char*& at, int64_t count) {
  T* here = reinterpret_cast<T*>(at);
  at += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
  return here;
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
template <class T, int LDS>
static void add_bias(const AttentionCall& c, const T* bias, int64_t rows, int64_t from, int64_t to, T* s) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = bias + r * c.bias_i;
    T* target = s + r * LDS;
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

// Which keys of a tile, from key t0 on, rows i0 + [row, row + count) of a sequence may see: tiles that a causal mask or
// a window forbids as a whole are left out.
struct Reach {
  const AttentionCall& c;
  int64_t i0, lq, lk, t0;
  bool whole;
  EDGEOPS_INLINE_MEMBER Reach(const AttentionCall& call, int64_t i, int64_t queries, int64_t keys, int64_t t)
      : c(call), i0(i), lq(queries), lk(keys), t0(t), whole(call.left < 0 && call.right < 0) {}
  EDGEOPS_INLINE_MEMBER void keys(int64_t row, int64_t count, int64_t& first, int64_t& end) const {
    if (!whole) {
      int64_t begin, last, ignored;
      allowed(c, i0 + row, lq, lk, begin, ignored);
      allowed(c, i0 + row + count - 1, lq, lk, ignored, last);
      first = begin - t0 > first ? begin - t0 : first;
      end = last - t0 < end ? last - t0 : end;
    }
  }
  // The rows among [0, count) that may see one of keys [key, key + keys).
  EDGEOPS_INLINE_MEMBER void rows(int64_t key, int64_t keys, int64_t count, int64_t& first, int64_t& end) const {
    first = 0;
    end = count;
    if (!whole) {
      const int64_t at = t0 + key - (lk - lq) - i0;  // the row that stands at the first key
      if (c.right >= 0 && at - c.right > 0) {
        first = at - c.right;
      }
      if (c.left >= 0 && at + keys + c.left < count) {
        end = at + keys + c.left;
      }
    }
  }
};

// Scores of the block's rows against keys [from, to) of the packed tile. What no row of a register tile may see is not
// written.
template <class T, int LDS>
EDGEOPS_INLINE void block_scores(
    int64_t rows, const T* q, int64_t ldq, const T* keys, int64_t dim, T scale, int64_t from, int64_t to,
    const Reach& reach, T* s) {
  constexpr int w = Panel<T>::n;
  for (int64_t j = from; j < to; j += w) {
    for (MicroBlock m(rows); m.next();) {
      T* target = s + m.row * LDS + j;
      const T* q_rows = q + m.row * ldq;
      int64_t first = from, end = to;
      reach.keys(m.row, m.height, first, end);
      if (j + w <= first || j >= end) {
        continue;
      }
      if (end - j > Lanes<T>::n) {
        score_rows<T, LDS, 2>(m.height, q_rows, ldq, keys + j * dim, dim, scale, target);
      } else {
        score_rows<T, LDS, 1>(m.height, q_rows, ldq, keys + j * dim, dim, scale, target);
      }
    }
  }
}

// Where the work on each row of a block ends, in whole vectors up to `to`: behind a causal edge rows stop early. A
// register tile reads every row as far as its last row or key reaches, kMaxRows - 1 further than the row itself may
// see.
template <class T>
EDGEOPS_INLINE void row_ends(
    const AttentionCall& c, int64_t i0, int64_t rows, int64_t lq, int64_t lk, int64_t t0, int64_t from, int64_t to,
    int64_t* ends) {
  constexpr int64_t n = Lanes<T>::n;
  for (int64_t r = 0; r < rows; ++r) {
    ends[r] = to;
    if (c.right >= 0) {
      int64_t ignored, end;
      allowed(c, i0 + r, lq, lk, ignored, end);
      const int64_t last = round_up(end - t0 + kMaxRows - 1, n);
      ends[r] = last < from + n ? from + n : (last < to ? last : to);
    }
  }
}

// Sets to -inf what the rows of the block may not see among columns [from, ends[row]); `end` bounds all rows.
template <class T, int LDS>
EDGEOPS_INLINE void block_mask(
    const AttentionCall& c, int64_t i0, int64_t rows, int64_t lq, int64_t lk, int64_t t0, int64_t from, int64_t end,
    const int64_t* ends, T* s) {
  const T none = -__builtin_inf();
  const bool whole = c.left < 0 && c.right < 0;
  for (int64_t r = 0; r < rows; ++r, s += LDS) {
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
    for (int64_t j = row_end; j < ends[r]; ++j) {
      s[j] = none;
    }
  }
}
