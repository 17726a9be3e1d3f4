// SPDX-License-Identifier: Apache-2.0
// Inner loops of products with rows of tables. Included once per instruction set, inside its namespace.
//
// Rows are gathered where a product copies them anyway: into a compact block of at most kTallest rows and one slice of
// k. Tiles of the result stay in registers: 6 rows and a panel of 64 bytes, or fewer rows and several panels, since a
// short tile of one panel would wait for its own additions. Every element of the result is one chain of multiply-adds
// in the order of k for each slice, and the slices are added in order; slices depend on k alone. So its bits do not
// depend on the number of rows, on the other rows, nor on who computes it.

constexpr int64_t kDeepest = 384;  // longest slice of k: a panel of it, 24 KiB, stays in the first-level cache

template <class T>
struct Shape {
  static constexpr int64_t width = kPanelBytes / static_cast<int64_t>(sizeof(T));  // of a panel
  static constexpr int vectors = kPanelBytes / EDGEOPS_VB;
  static constexpr int most = vectors == 4 ? 3 : 6;                          // rows of a tile
  static constexpr int64_t pad = 64 / static_cast<int64_t>(sizeof(T));       // behind a turned tile
  static constexpr int64_t tallest = 576 / static_cast<int64_t>(sizeof(T));  // rows of a compact block: 216 KiB
};

EDGEOPS_INLINE int64_t ceil_div(int64_t x, int64_t by) {
  return (x + by - 1) / by;
}

// Height of the blocks of m rows: even, whole tiles, at most `tallest`.
template <class T>
EDGEOPS_INLINE int64_t height_of(int64_t m) {
  constexpr int64_t most = Shape<T>::most;
  const int64_t even = ceil_div(m, ceil_div(m, Shape<T>::tallest));
  const int64_t whole = ceil_div(even, most) * most;
  return whole < Shape<T>::tallest ? whole : Shape<T>::tallest;
}

// Length of the slices of k; a function of k alone.
EDGEOPS_INLINE int64_t slice_of(int64_t k) {
  return k <= kDeepest ? k : ceil_div(k, ceil_div(k, kDeepest));
}

// What all tiles of a strip have in common. Panels lie `next` elements apart. Rows of a are dense and lie `ar` apart,
// or are turned: tile after tile, [k][rows of the tile].
template <class T>
struct Strip {
  const T* a;
  int64_t ar;
  const T* b;
  int64_t next, k;
  const T* bias;  // of the first panel, or nullptr
  T* c;
  int64_t ldc;
  bool add;
};

// c[r, :] = (c[r, :] if add) + bias + sum_p a[r, p] * b[p, :], for MR rows and NP panels.
template <class T, int MR, int NP, bool kTurned>
EDGEOPS_INLINE void linear_tile(const Strip<T>& s, const T* a, T* c) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n, nv = Shape<T>::vectors;
  constexpr int64_t w = Shape<T>::width;
  V acc[MR][NP * nv] = {};
  if (s.bias != nullptr) {
#pragma GCC unroll 16
    for (int v = 0; v < NP * nv; ++v) {
      const V start = vload<T>(s.bias + v * n);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
        acc[r][v] = start;
      }
    }
  }
  const T* b = s.b;
  const int64_t ar = kTurned ? 1 : s.ar, step = kTurned ? MR : 1, next = s.next, k = s.k;
#pragma GCC unroll 2
  for (int64_t p = 0; p < k; ++p) {
    V x[NP * nv];
#pragma GCC unroll 8
    for (int q = 0; q < NP; ++q) {
#pragma GCC unroll 4
      for (int v = 0; v < nv; ++v) {
        x[q * nv + v] = vload<T>(b + q * next + v * n);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const V y = vset<T>(a[r * ar]);
#pragma GCC unroll 16
      for (int v = 0; v < NP * nv; ++v) {
        acc[r][v] += y * x[v];
      }
    }
    a += step;
    b += w;
  }
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < NP * nv; ++v) {
      T* to = c + r * s.ldc + v * n;
      vstore<T>(to, s.add ? vload<T>(to) + acc[r][v] : acc[r][v]);
    }
  }
}

template <class T, int NP, bool kTurned>
static void linear_rows(int64_t rows, const Strip<T>& s, const T* a, T* c) {
#define EDGEOPS_ROWS(MR)                                                       \
  case MR:                                                                     \
    if constexpr (MR <= Shape<T>::most && MR * NP * Shape<T>::vectors <= 12) { \
      linear_tile<T, MR, NP, kTurned>(s, a, c);                                \
    }                                                                          \
    break;
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
#undef EDGEOPS_ROWS
}

// All rows of NP panels, in tiles of nearly equal height.
template <class T, int NP, bool kTurned>
static void linear_strip(int64_t m, const Strip<T>& s) {
  const int64_t tiles = ceil_div(m, Shape<T>::most), low = m / tiles, higher = m % tiles;
  for (int64_t t = 0, r = 0; t < tiles; ++t) {
    const int64_t rows = low + (t < higher);
    linear_rows<T, NP, kTurned>(rows, s, s.a + (kTurned ? r * s.k + t * Shape<T>::pad : r * s.ar), s.c + r * s.ldc);
    r += rows;
  }
}

// The same for one panel that only `width` columns of the result fill: through a buffer.
template <class T, bool kTurned>
static void linear_narrow(int64_t m, int64_t width, Strip<T> s) {
  constexpr int64_t w = Shape<T>::width, most = Shape<T>::most;
  T room[most * w];
  T* c = s.c;
  const int64_t ldc = s.ldc, tiles = ceil_div(m, most), low = m / tiles, higher = m % tiles;
  const bool add = s.add;
  s.ldc = w;
  s.add = false;
  for (int64_t t = 0, i = 0; t < tiles; ++t) {
    const int64_t rows = low + (t < higher);
    linear_rows<T, 1, kTurned>(rows, s, s.a + (kTurned ? i * s.k + t * Shape<T>::pad : i * s.ar), room);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < width; ++j) {
        T& to = c[(i + r) * ldc + j];
        to = add ? to + room[r * w + j] : room[r * w + j];
      }
    }
    i += rows;
  }
}

// All rows of a block times panels that hold `n` columns.
template <class T, bool kTurned>
static void linear_panels(int64_t m, int64_t n, Strip<T> s) {
  constexpr int64_t w = Shape<T>::width;
  constexpr int wide = kTurned ? 1 : 8 / Shape<T>::vectors;  // panels of a one-row tile: eight additions in flight
  constexpr int half = wide > 1 ? wide / 2 : 1;
  const auto move = [&](int64_t panels) {
    n -= panels * w;
    s.b += panels * s.next;
    s.c += panels * w;
    s.bias = s.bias == nullptr ? nullptr : s.bias + panels * w;
  };
  if constexpr (wide > 1) {
    for (; m == 1 && n >= wide * w; move(wide)) {
      linear_strip<T, wide, kTurned>(m, s);
    }
    if constexpr (half > 1) {
      for (; m <= 3 && n >= half * w; move(half)) {
        linear_strip<T, half, kTurned>(m, s);
      }
    }
  }
  if constexpr (Shape<T>::vectors == 1) {  // twelve sums in flight here too
    for (; n >= 2 * w; move(2)) {
      linear_strip<T, 2, kTurned>(m, s);
    }
  }
  for (; n >= w; move(1)) {
    linear_strip<T, 1, kTurned>(m, s);
  }
  if (n > 0) {
    linear_narrow<T, kTurned>(m, n, s);
  }
}

constexpr int64_t kAhead = 8;  // rows from now that are fetched: their addresses are not guessed by the processor

template <class S>
EDGEOPS_INLINE void fetch(const S* p, int64_t count) {
  const char* at = reinterpret_cast<const char*>(p);
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(S)); byte += 64) {
    __builtin_prefetch(at + byte);
  }
}

template <class S>
EDGEOPS_INLINE const S* row_of(const Operand& x, int64_t i) {
  return static_cast<const S*>(x.table) + (x.rows == nullptr ? i : x.rows[i]) * x.stride;
}

// dst[r, :] = columns [p, p + depth) of row i0 + r of the operands side by side.
template <class St>
static void gather_rows(
    const Operand* operands, int64_t count, int64_t i0, int64_t height, int64_t p, int64_t depth, typename St::T* dst,
    int64_t ld) {
  for (int64_t o = 0, at = 0; o < count; at += operands[o].width, ++o) {
    const int64_t first = p > at ? p : at;
    const int64_t end = p + depth < at + operands[o].width ? p + depth : at + operands[o].width;
    for (int64_t r = 0; first < end && r < height; ++r) {
      fetch(row_of<typename St::S>(operands[o], i0 + (r + 2 < height ? r + 2 : r)) + first - at, end - first);
      widen<St>(row_of<typename St::S>(operands[o], i0 + r) + first - at, dst + r * ld + first - p, end - first);
    }
  }
}

template <class St>
static void linear_run(const Linear& g, const LinearPiece& piece, Scratch scratch) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr int64_t w = Shape<T>::width;
  constexpr bool direct = sizeof(S) == sizeof(T);
  const int64_t j = piece.p0 * w, end = piece.p1 * w < g.n ? piece.p1 * w : g.n, n = end - j;
  const int64_t slice = slice_of(g.k), ld = slice + w;  // rows of a power of two would fall on each other in the cache
  const int64_t tallest = height_of<T>(piece.i1 - piece.i0);
  const int64_t rows = piece.i1 - piece.i0 < tallest ? piece.i1 - piece.i0 : tallest;
  T* block = reinterpret_cast<T*>(scratch(0, rows * (ld + (direct ? 0 : n)) * sizeof(T)));
  T* wide = block + rows * ld;
  for (int64_t i = piece.i0; i < piece.i1; i += tallest) {
    const int64_t height = piece.i1 - i < tallest ? piece.i1 - i : tallest;
    S* out = static_cast<S*>(g.out) + i * g.out_row + j;
    Strip<T> s{block, ld, nullptr, g.k * w, 0, nullptr, wide, n, false};
    if constexpr (direct) {
      s.c = out;
      s.ldc = g.out_row;
    }
    for (int64_t r = 0; !direct && g.on && r < height; ++r) {
      widen<St>(out + r * g.out_row, wide + r * n, n);
    }
    int64_t p = 0;
    do {  // k may be 0: the bias alone
      s.k = g.k - p < slice ? g.k - p : slice;
      s.b = static_cast<const T*>(g.weight) + (piece.p0 * g.k + p) * w;
      s.bias = p == 0 && g.bias != nullptr ? static_cast<const T*>(g.bias) + j : nullptr;
      s.add = g.on || p > 0;
      gather_rows<St>(g.operands, g.count, i, height, p, s.k, block, ld);
      linear_panels<T, false>(height, n, s);
      p += slice;
    } while (p < g.k);
    for (int64_t r = 0; !direct && r < height; ++r) {
      narrow<St>(wide + r * n, out + r * g.out_row, n);
    }
  }
}

// panels[x][q, :] = columns [first + x * w, ...) of rows s0 + q of the operands, zeros behind the last column.
template <class St>
static void gather_panels(
    const WeightGrad& g, int64_t s0, int64_t depth, int64_t first, int64_t columns, typename St::T* panels) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr int64_t w = Shape<T>::width;
  int64_t at = 0;
  for (int64_t o = 0; o < g.count; at += g.operands[o].width, ++o) {
    const int64_t low = at > first ? at : first;
    const int64_t high = at + g.operands[o].width < first + columns ? at + g.operands[o].width : first + columns;
    for (int64_t x = low; x < high;) {  // four panels of a row at a time: whole stretches of memory
      const int64_t to = (x - first) / w * w + 4 * w + first, stop = to < high ? to : high;
      for (int64_t q = 0; q < depth; ++q) {
        const S* src = row_of<S>(g.operands[o], s0 + q) + (x - at);
        fetch(row_of<S>(g.operands[o], s0 + (q + kAhead < depth ? q + kAhead : q)) + (x - at), stop - x);
        for (int64_t y = x; y < stop;) {
          const int64_t within = (y - first) % w, rest = stop - y, some = w - within < rest ? w - within : rest;
          T* dst = panels + (y - first) / w * w * depth + q * w + within;
          if (some == w) {
            widen<St>(src + (y - x), dst, w);
          } else {
            widen<St>(src + (y - x), dst, some);
          }
          y += some;
        }
      }
      x = stop;
    }
  }
  const int64_t used = columns % w;
  for (int64_t q = 0; used > 0 && q < depth; ++q) {
    T* dst = panels + columns / w * w * depth + q * w;
    for (int64_t y = used; y < w; ++y) {
      dst[y] = T(0);
    }
  }
}

// The columns of `depth` rows of grad as the turned rows of tiles, tiles as in `linear_strip`; adds them up into `sum`
// where it is given.
template <class St>
static void turn_rows(
    const typename St::S* grad, int64_t stride, int64_t depth, int64_t m, typename St::T* dst, typename St::T* room,
    typename St::T* sum) {
  typedef typename St::T T;
  constexpr int64_t most = Shape<T>::most;
  const int64_t tiles = ceil_div(m, most), low = m / tiles, higher = m % tiles;
  for (int64_t q = 0; q < depth; ++q) {
    fetch(grad + (q + kAhead < depth ? q + kAhead : q) * stride, m);
    const T* row = row_slice<St>(grad + q * stride, m, room);
    for (int64_t t = 0, r = 0; t < tiles; ++t) {
      const int64_t rows = low + (t < higher);
      T* to = dst + r * depth + t * Shape<T>::pad + q * rows;
      if (Lanes<T>::n >= most && r + Lanes<T>::n <= m) {  // what is too much the next row overwrites, or it is the pad
        vstore<T>(to, vload<T>(row + r));
      } else if (rows == most) {
        __builtin_memcpy(to, row + r, most * sizeof(T));
      } else {
        for (int64_t i = 0; i < rows; ++i) {
          to[i] = row[r + i];
        }
      }
      r += rows;
    }
    for (int64_t i = 0; sum != nullptr && i < m; ++i) {
      sum[i] += row[i];
    }
  }
}

// Slices of m are of one length whatever m is: sums do not depend on how the work was cut.
template <class St>
static void wgrad_run(const WeightGrad& g, const LinearPiece& piece, Scratch scratch) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr int64_t w = Shape<T>::width, widest = 32 * w;
  const int64_t tallest = height_of<T>(piece.i1 - piece.i0);
  const int64_t last = piece.p1 * w < g.k ? piece.p1 * w : g.k;
  T* panels = reinterpret_cast<T*>(
      scratch(0, ((widest + tallest) * kDeepest + 2 * tallest + tallest * Shape<T>::pad) * sizeof(T)));
  T* block = panels + widest * kDeepest;
  T* room = block + tallest * (kDeepest + Shape<T>::pad);
  T* sum = room + tallest;
  int64_t j = piece.p0 * w;
  do {  // k may be 0: the bias alone
    const int64_t columns = last - j < widest ? last - j : widest;
    const bool with_bias = g.dbias != nullptr && j == 0;
    for (int64_t s0 = 0; s0 < g.m; s0 += kDeepest) {
      const int64_t depth = g.m - s0 < kDeepest ? g.m - s0 : kDeepest;
      gather_panels<St>(g, s0, depth, j, columns, panels);
      for (int64_t i = piece.i0; i < piece.i1; i += tallest) {
        const int64_t height = piece.i1 - i < tallest ? piece.i1 - i : tallest;
        const S* grad = static_cast<const S*>(g.grad) + s0 * g.grad_row + i;
        __builtin_memset(sum, 0, height * sizeof(T));
        turn_rows<St>(grad, g.grad_row, depth, height, block, room, with_bias ? sum : nullptr);
        for (int64_t x = 0; with_bias && x < height; ++x) {
          static_cast<T*>(g.dbias)[i + x] += sum[x];
        }
        if (columns <= 0) {
          continue;
        }
        T* c = static_cast<T*>(g.dweight) + i * g.dweight_row + j;
        const bool add = !g.fresh || s0 > 0;
        linear_panels<T, true>(height, columns, {block, 0, panels, depth * w, depth, nullptr, c, g.dweight_row, add});
      }
    }
    j += widest;
  } while (j < last);
}

template <class St>
static void pack_run(
    const void* weight, int64_t n, int64_t k, int64_t row, int64_t col, int64_t p0, int64_t p1, void* out,
    int64_t next) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr int64_t w = Shape<T>::width;
  for (int64_t x = p0; x < p1; ++x) {
    const S* b = static_cast<const S*>(weight) + x * w * row;
    T* dst = static_cast<T*>(out) + x * next;
    const int64_t width = n - x * w < w ? n - x * w : w;
    int64_t turned = 0, columns = 0;
#if EDGEOPS_VB == 32
    if constexpr (sizeof(S) == 4) {
      if (col == 1) {
        turned = k / 8 * 8;
        columns = width / 8 * 8;
        for (int64_t j = 0; j < columns; j += 8) {
          for (int64_t p = 0; p < turned; p += 8) {
            transpose8(b + j * row + p, row, 7, dst + p * w + j, w);
          }
        }
      }
    }
#endif
    for (int64_t p = 0; p < k; ++p) {
      if (row == 1 && width == w) {
        widen<St>(b + p * col, dst + p * w, w);
        continue;
      }
      for (int64_t j = p < turned ? columns : 0; j < width; ++j) {
        widen<St>(b + p * col + j * row, dst + p * w + j, 1);
      }
      for (int64_t j = width; j < w; ++j) {
        dst[p * w + j] = T(0);
      }
    }
  }
}

template <class St>
static void widen_run(const void* src, int64_t n, void* dst) {
  if (n > 0) {  // of an empty bias even the pointers may be null
    widen<St>(static_cast<const typename St::S*>(src), static_cast<typename St::T*>(dst), n);
  }
}
