// SPDX-License-Identifier: Apache-2.0
// Inner loops of variable-size products. Included once per instruction set, inside its namespace.
//
// Tiles of 6 x 2 or 12 x 1 vectors of the result stay in registers. Small products read both operands where they are;
// larger ones copy a block of b into panels of two vectors, and rows of a that lie far apart into a compact block.
// Every element of the result is one chain of multiply-adds in the order of k, for each slice of at most kDeepest of
// it, and the slices are added in order: its bits depend on its row of a and column of b alone, not on how the work was
// cut, on what else the call computes, or on who computes it.

constexpr int64_t kDeepest = 384;  // longest slice of k: a panel of b (24 KiB) stays in the first-level cache
constexpr int64_t kTallest = 144;  // rows of a in a compact block: 216 KiB stay in the second-level cache
constexpr int64_t kWidest = 1024;  // columns of b in panels at once
constexpr int kRows2 = 6, kRows1 = 12;

EDGEOPS_INLINE int64_t ceil_div(int64_t x, int64_t by) {
  return (x + by - 1) / by;
}

// Length of the slices of k; a function of k alone.
EDGEOPS_INLINE int64_t slice_of(int64_t k) {
  return k <= kDeepest ? k : ceil_div(k, ceil_div(k, kDeepest));
}

// c[r, :] = (c[r, :] if kAdd) + sum_p a[r * ar + p * ac] * b[p * ldb + :], for MR rows and the vectors of columns that
// begin at 0 and, where NV is 2, at `second`.
template <class T, int MR, int NV, bool kAdd, bool kUnit>
EDGEOPS_INLINE void gemm_tile(
    const T* a, int64_t ar, int64_t ac, const T* b, int64_t ldb, int64_t second, int64_t k, T* c, int64_t ldc) {
  typedef typename Lanes<T>::V V;
  V acc[MR][NV] = {};
  const int64_t step = kUnit ? 1 : ac;
#pragma GCC unroll 2
  for (int64_t p = 0; p < k; ++p) {
    V x[NV];
    x[0] = vload<T>(b);
    if constexpr (NV == 2) {
      x[1] = vload<T>(b + second);
    }
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r) {
      const V y = vset<T>(a[r * ar]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        acc[r][v] += y * x[v];
      }
    }
    a += step;
    b += ldb;
  }
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      T* to = c + r * ldc + v * second;
      vstore<T>(to, kAdd ? vload<T>(to) + acc[r][v] : acc[r][v]);
    }
  }
}

template <class T, int NV, bool kAdd, bool kUnit>
static void gemm_rows(
    int64_t rows, const T* a, int64_t ar, int64_t ac, const T* b, int64_t ldb, int64_t second, int64_t k, T* c,
    int64_t ldc) {
#define EDGEOPS_ROWS(MR) \
  case MR:               \
    return gemm_tile<T, MR, NV, kAdd, kUnit>(a, ar, ac, b, ldb, second, k, c, ldc);
  switch (rows) {
    EDGEOPS_ROWS(1)
    EDGEOPS_ROWS(2)
    EDGEOPS_ROWS(3)
    EDGEOPS_ROWS(4)
    EDGEOPS_ROWS(5)
    EDGEOPS_ROWS(6)
    default:
      break;
  }
  if constexpr (NV == 1) {
    switch (rows) {
      EDGEOPS_ROWS(7)
      EDGEOPS_ROWS(8)
      EDGEOPS_ROWS(9)
      EDGEOPS_ROWS(10)
      EDGEOPS_ROWS(11)
      EDGEOPS_ROWS(12)
      default:
        break;
    }
  }
#undef EDGEOPS_ROWS
}

// What all tiles of a panel have in common.
template <class T>
struct Strip {
  const T* a;
  int64_t ar, ac;
  const T* b;
  int64_t ldb, second, k;
  T* c;
  int64_t ldc;
};

// All rows of one panel, in tiles of nearly equal height: the last would otherwise wait for its own additions.
template <class T, int NV, bool kAdd>
static void gemm_strip(int64_t m, const Strip<T>& s) {
  const int64_t tiles = ceil_div(m, NV == 2 ? kRows2 : kRows1);
  const int64_t low = m / tiles, higher = m % tiles;
  for (int64_t t = 0, r = 0; t < tiles; ++t) {
    const int64_t rows = low + (t < higher);
    const T* a = s.a + r * s.ar;
    if (s.ac == 1) {
      gemm_rows<T, NV, kAdd, true>(rows, a, s.ar, s.ac, s.b, s.ldb, s.second, s.k, s.c + r * s.ldc, s.ldc);
    } else {
      gemm_rows<T, NV, kAdd, false>(rows, a, s.ar, s.ac, s.b, s.ldb, s.second, s.k, s.c + r * s.ldc, s.ldc);
    }
    r += rows;
  }
}

// The same for a panel of `width` columns, fewer than its vectors hold: through a buffer.
template <class T, int NV, bool kAdd>
static void gemm_narrow_strip(int64_t m, int64_t width, Strip<T> s) {
  constexpr int n = Lanes<T>::n;
  constexpr int64_t most = NV == 2 ? kRows2 : kRows1;
  T room[most * NV * n];
  T* c = s.c;
  const int64_t ldc = s.ldc, tiles = ceil_div(m, most), low = m / tiles, higher = m % tiles;
  s.c = room;
  s.ldc = NV * n;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t rows = low + (t < higher);
    gemm_strip<T, NV, false>(rows, s);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < width; ++j) {
        const T x = room[r * NV * n + j];
        c[r * ldc + j] = kAdd ? c[r * ldc + j] + x : x;
      }
    }
    s.a += rows * s.ar;
    c += rows * ldc;
  }
}

// One panel: dst[p * 2n + j] = b[p, j] for `width` columns, zeros up to the next whole vector.
template <class T>
static void pack_panel(const T* b, int64_t b_row, int64_t b_col, int64_t k, int64_t width, T* dst) {
  constexpr int n = Lanes<T>::n;
  constexpr int64_t w = 2 * n;
  if (b_col == 1 && (width == w || width == n)) {
    for (int64_t p = 0; p < k; ++p) {
      vstore<T>(dst + p * w, vload<T>(b + p * b_row));
      if (width == w) {
        vstore<T>(dst + p * w + n, vload<T>(b + p * b_row + n));
      }
    }
    return;
  }
  const int64_t whole = width <= n ? n : w;
  int64_t turned = 0, columns = 0;
#if EDGEOPS_VB == 32
  if constexpr (sizeof(T) == 4) {
    if (b_row == 1) {
      turned = k / 8 * 8;
      columns = width / 8 * 8;
      for (int64_t j = 0; j < columns; j += 8) {
        for (int64_t p = 0; p < turned; p += 8) {
          transpose8(b + j * b_col + p, b_col, 7, dst + p * w + j, w);
        }
      }
    }
  }
#endif
  for (int64_t p = 0; p < k; ++p) {
    const int64_t first = p < turned ? columns : 0;
    for (int64_t j = first; j < width; ++j) {
      dst[p * w + j] = b[p * b_row + j * b_col];
    }
    for (int64_t j = width; j < whole; ++j) {
      dst[p * w + j] = T(0);
    }
  }
}

// Everything in place: k is one slice, columns of b are dense and there is at least a vector of them. The last vector
// of columns may overlap the one before: it computes the same bits again.
template <class T>
static void gemm_in_place(int64_t m, int64_t n, Strip<T> s) {
  constexpr int w = Lanes<T>::n;
  const T* b = s.b;
  T* c = s.c;
  int64_t j = 0;
  for (; j + w < n; j += 2 * w) {
    s.b = b + j;
    s.c = c + j;
    s.second = j + 2 * w <= n ? w : n - w - j;
    gemm_strip<T, 2, false>(m, s);
  }
  if (j < n) {
    j = n - w;
    s.b = b + j;
    s.c = c + j;
    gemm_strip<T, 1, false>(m, s);
  }
}

// A compact copy of rows of a, in the order they have: [m][k] where rows are dense, [k][m] where columns are.
template <class T>
static void compact_rows(const T* a, int64_t a_row, int64_t a_col, int64_t m, int64_t k, T* dst) {
  if (a_row == 1) {
    for (int64_t p = 0; p < k; ++p) {
      __builtin_memcpy(dst + p * m, a + p * a_col, m * sizeof(T));
    }
  } else {
    for (int64_t r = 0; r < m; ++r) {
      if (a_col == 1) {
        __builtin_memcpy(dst + r * k, a + r * a_row, k * sizeof(T));
      } else {
        for (int64_t p = 0; p < k; ++p) {
          dst[r * k + p] = a[r * a_row + p * a_col];
        }
      }
    }
  }
}

template <class T, bool kAdd>
static void gemm_panels(int64_t m, int64_t n, Strip<T> s) {
  constexpr int v = Lanes<T>::n;
  constexpr int64_t w = 2 * v;
  s.ldb = w;
  s.second = v;
  for (int64_t j = 0; j < n; j += w, s.b += w * s.k, s.c += w) {
    const int64_t width = n - j < w ? n - j : w;
    if (width == w) {
      gemm_strip<T, 2, kAdd>(m, s);
    } else if (width == v) {
      gemm_strip<T, 1, kAdd>(m, s);
    } else if (width > v) {
      gemm_narrow_strip<T, 2, kAdd>(m, width, s);
    } else {
      gemm_narrow_strip<T, 1, kAdd>(m, width, s);
    }
  }
}

// b in panels, slice by slice of k.
template <class T>
static void gemm_blocked(
    int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t b_row, int64_t b_col,
    T* c, int64_t ldc, Scratch scratch) {
  constexpr int64_t w = 2 * Lanes<T>::n;
  const int64_t slice = slice_of(k);
  const int64_t widest = n < kWidest ? ceil_div(n, w) * w : kWidest;
  const bool compact = n >= 4 * w && (a_row != 1 ? a_row : a_col) * static_cast<int64_t>(sizeof(T)) >= 2048;
  T* panels = reinterpret_cast<T*>(scratch(0, (widest + (compact ? kTallest : 0)) * slice * sizeof(T)));
  T* rows = panels + widest * slice;
  for (int64_t j = 0; j < n; j += widest) {
    const int64_t columns = n - j < widest ? n - j : widest;
    for (int64_t p = 0; p < k; p += slice) {
      const int64_t depth = k - p < slice ? k - p : slice;
      for (int64_t x = 0; x < columns; x += w) {
        const int64_t width = columns - x < w ? columns - x : w;
        pack_panel<T>(b + p * b_row + (j + x) * b_col, b_row, b_col, depth, width, panels + x * depth);
      }
      for (int64_t i = 0; i < m; i += kTallest) {
        const int64_t height = m - i < kTallest ? m - i : kTallest;
        Strip<T> s{a + i * a_row + p * a_col, a_row, a_col, panels, w, 0, depth, c + i * ldc + j, ldc};
        if (compact) {
          compact_rows<T>(s.a, a_row, a_col, height, depth, rows);
          s.a = rows;
          s.ar = a_row == 1 ? 1 : depth;
          s.ac = a_row == 1 ? height : 1;
        }
        if (p == 0) {
          gemm_panels<T, false>(height, columns, s);
        } else {
          gemm_panels<T, true>(height, columns, s);
        }
      }
    }
  }
}

// One matrix of half precision, widened in the order it has; strides of the copy in `row` and `col`.
template <class St>
static void widen_matrix(
    const typename St::S* src, int64_t src_row, int64_t src_col, int64_t rows, int64_t cols, typename St::T* dst,
    int64_t& row, int64_t& col) {
  if (src_row == 1 && src_col != 1) {
    widen_matrix<St>(src, src_col, src_row, cols, rows, dst, col, row);
    return;
  }
  row = cols;
  col = 1;
  for (int64_t r = 0; r < rows; ++r) {
    if (src_col == 1) {
      widen<St>(src + r * src_row, dst + r * cols, cols);
    } else {
      for (int64_t j = 0; j < cols; ++j) {
        widen<St>(src + r * src_row + j * src_col, dst + r * cols + j, 1);
      }
    }
  }
}

template <class T>
static void gemm_dense(
    int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t b_row, int64_t b_col,
    T* c, int64_t ldc, Scratch scratch) {
  constexpr int64_t v = Lanes<T>::n;
  constexpr int64_t held = 24 * 1024;  // bytes of b that are read where they are, if rows of a share them
  if (b_col == 1 && n >= v && k <= kDeepest && (m <= 12 || k * n * static_cast<int64_t>(sizeof(T)) <= held)) {
    gemm_in_place<T>(m, n, {a, a_row, a_col, b, b_row, 0, k, c, ldc});
  } else {
    gemm_blocked<T>(m, n, k, a, a_row, a_col, b, b_row, b_col, c, ldc, scratch);
  }
}

template <class St>
static void gemm_run(const GemmGroup& g, const GemmPiece& piece, Scratch scratch) {
  typedef typename St::S S;
  typedef typename St::T T;
  const int64_t m = piece.m1 - piece.m0, n = piece.n1 - piece.n0, k = g.k;
  S* c = static_cast<S*>(g.c) + piece.m0 * g.c_row + piece.n0;
  if (k == 0) {  // a and b may have no memory
    for (int64_t r = 0; r < m; ++r) {
      __builtin_memset(c + r * g.c_row, 0, n * sizeof(S));
    }
    return;
  }
  const S* a = static_cast<const S*>(g.a) + piece.m0 * g.a_row;
  const S* b = static_cast<const S*>(g.b) + piece.n0 * g.b_col;
  if constexpr (sizeof(S) == sizeof(T)) {
    gemm_dense<T>(m, n, k, a, g.a_row, g.a_col, b, g.b_row, g.b_col, c, g.c_row, scratch);
  } else {
    T* wide = reinterpret_cast<T*>(scratch(1, (m * k + k * n + m * n) * sizeof(T)));
    T *wide_b = wide + m * k, *wide_c = wide_b + k * n;
    int64_t a_row, a_col, b_row, b_col;
    widen_matrix<St>(a, g.a_row, g.a_col, m, k, wide, a_row, a_col);
    widen_matrix<St>(b, g.b_row, g.b_col, k, n, wide_b, b_row, b_col);
    gemm_dense<T>(m, n, k, wide, a_row, a_col, wide_b, b_row, b_col, wide_c, n, scratch);
    for (int64_t r = 0; r < m; ++r) {
      narrow<St>(wide_c + r * n, c + r * g.c_row, n);
    }
  }
}
