// SPDX-License-Identifier: Apache-2.0
// Inner loops of the triangular ops. Included once per instruction set.
//
// A product is blocked over the reduction; each block of B is packed into panels as wide as a tile, each block of A
// into panels as high as a tile, and a tile sums over its own part of the triangle only. Every element of C is one
// chain of multiply-adds per block of the reduction, so its bits depend neither on the other rows and columns nor on
// the pieces.
#include "tile.inl.h"

constexpr int64_t kTriDepth = 252;  // a multiple of kTileRows, so that no diagonal tile lies in two blocks
constexpr int64_t kTriBlock = 144;  // rows of A packed at a time: with kTriDepth a third of a small L2 cache

EDGEOPS_INLINE int64_t tri_up(int64_t x, int64_t to) {
  return (x + to - 1) / to * to;
}

EDGEOPS_INLINE int64_t tri_min(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// panels[p][k][j] = b[k, p * n + j]; columns beyond `cols` become 0
template <class T>
static void tri_pack_b(const T* b, int64_t row, int64_t col, int64_t depth, int64_t cols, T* panels) {
  typedef typename Lanes<T>::V V;
  constexpr int n = Tile<T>::n, w = Lanes<T>::n;
  for (int64_t j0 = 0; j0 < cols; j0 += n, panels += n * depth, b += n * col) {
    const int64_t have = tri_min(n, cols - j0);
    if (col == 1 && have == n) {
      for (int64_t k = 0; k < depth; ++k) {
        const V x = vload<T>(b + k * row), y = vload<T>(b + k * row + w);
        vstore<T>(panels + k * n, x);
        vstore<T>(panels + k * n + w, y);
      }
      continue;
    }
    if (have < n) {
      __builtin_memset(panels, 0, n * depth * sizeof(T));
    }
    for (int64_t k0 = 0; k0 < depth; k0 += 16) {  // short runs down each column, so that lines are used whole
      const int64_t k1 = tri_min(k0 + 16, depth);
      for (int64_t j = 0; j < have; ++j) {
        for (int64_t k = k0; k < k1; ++k) {
          panels[k * n + j] = b[k * row + j * col];
        }
      }
    }
  }
}

// panel[k][r] = a[r, k] for `rows` rows, 0 in rows beyond. With `first` >= 0 row r has no more than first + r + 1
// columns: the rest is not read.
template <class T>
static void tri_pack_a(const T* a, int64_t row, int64_t col, int64_t rows, int64_t depth, int64_t first, T* panel) {
  constexpr int m = kTileRows;
  const int64_t whole = rows < m ? 0 : first < 0 ? depth : tri_min(depth, first + 1);
  if (col == 1) {
    for (int64_t k = 0; k < whole; ++k) {
#pragma GCC unroll 6
      for (int r = 0; r < m; ++r) {
        panel[k * m + r] = a[r * row + k];
      }
    }
  } else {
    for (int64_t k = 0; k < whole; ++k) {
#pragma GCC unroll 6
      for (int r = 0; r < m; ++r) {
        panel[k * m + r] = a[r * row + k * col];
      }
    }
  }
  for (int64_t k = whole; k < depth; ++k) {
    for (int64_t r = 0; r < m; ++r) {
      panel[k * m + r] = r < rows && (first < 0 || k <= first + r) ? a[r * row + k * col] : T(0);
    }
  }
}

// Columns 1..kTileRows-1 of a diagonal block: row r has its part up to the diagonal only, so that what stands in B
// below row r never meets it (0 * NaN).
template <class T>
EDGEOPS_INLINE void tri_corner(Tile<T>& tile, const T* a, const T* b, int64_t rows) {
  typedef typename Lanes<T>::V V;
#pragma GCC unroll 6
  for (int t = 1; t < kTileRows; ++t) {
    if (t < rows) {
      const V b0 = vload<T>(b + t * Tile<T>::n), b1 = vload<T>(b + t * Tile<T>::n + Lanes<T>::n);
#pragma GCC unroll 6
      for (int r = 1; r < kTileRows; ++r) {
        if (r >= t) {
          const V x = vset<T>(a[t * kTileRows + r]);
          tile.acc[r][0] += x * b0;
          tile.acc[r][1] += x * b1;
        }
      }
    }
  }
}

template <class T>
static int64_t tri_scratch(const TriProduct& call, const TriPiece& piece) {
  const int64_t depth = tri_min(kTriDepth, call.depth);
  return (depth * (tri_up(piece.j1 - piece.j0, Tile<T>::n) + kTriBlock)) * static_cast<int64_t>(sizeof(T)) + 128;
}

// Tiles of one packed block of A and one panel of B.
template <class T>
static void tri_tiles(
    const TriProduct& call, const T* a, const T* b, int64_t i0, int64_t i1, int64_t j, int64_t cols, int64_t k0,
    int64_t k1) {
  constexpr int n = Tile<T>::n;
  const T alpha = static_cast<T>(call.alpha);
  for (int64_t i = i0; i < i1; i += kTileRows, a += kTileRows * (k1 - k0)) {
    const int64_t rows = tri_min(kTileRows, i1 - i);
    T* c = static_cast<T*>(call.c) + i * call.c_row + j;
    Tile<T> tile = {};
    if (call.ragged == Ragged::reduction) {
      tile_packed<T>(tile, a, b, tri_min(k1, i + 1) - k0);
      if (i < k1 && i + kTileRows > k0) {
        tri_corner<T>(tile, a + (i - k0) * kTileRows, b + (i - k0) * n, rows);
      }
      tile_store<T>(tile, alpha, k0 > 0, c, call.c_row, rows, cols);
      continue;
    }
    const bool lower = call.ragged == Ragged::lower;
    if (lower ? j >= i + rows : j + cols <= i) {
      continue;
    }
    tile_packed<T>(tile, a, b, k1 - k0);
    if (lower ? j + cols <= i + 1 : j + 1 >= i + rows) {
      tile_store<T>(tile, alpha, k0 > 0, c, call.c_row, rows, cols);
      continue;
    }
    T room[kTileRows * n];
    tile_store<T>(tile, alpha, false, room, n, kTileRows, n);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t s = 0; s < cols; ++s) {
        if (lower ? j + s <= i + r : j + s >= i + r) {
          T* to = c + r * call.c_row + s;
          *to = k0 > 0 ? *to + room[r * n + s] : room[r * n + s];
        }
      }
    }
  }
}

template <class T>
static void tri_product(const TriProduct& call, const TriPiece& piece, char* scratch) {
  constexpr int n = Tile<T>::n;
  const bool ragged_k = call.ragged == Ragged::reduction;
  const auto* a = static_cast<const T*>(call.a);
  const auto* b = static_cast<const T*>(call.b);
  // only columns and rows that meet the triangle
  int64_t j0 = piece.j0, j1 = piece.j1;
  if (call.ragged == Ragged::lower) {
    j1 = tri_min(j1, piece.i1);
  } else if (call.ragged == Ragged::upper && j0 < piece.i0 / n * n) {
    j0 = piece.i0 / n * n;
  }
  if (j0 >= j1) {
    return;
  }
  const int64_t most = ragged_k ? tri_min(piece.i1, call.depth) : call.depth;
  T* packed_b = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
  T* packed_a = packed_b + tri_min(kTriDepth, call.depth) * tri_up(piece.j1 - piece.j0, n);
  for (int64_t k0 = 0; k0 < most; k0 += kTriDepth) {
    const int64_t k1 = tri_min(k0 + kTriDepth, most);
    tri_pack_b<T>(b + k0 * call.b_row + j0 * call.b_col, call.b_row, call.b_col, k1 - k0, j1 - j0, packed_b);
    const int64_t first = ragged_k && k0 > piece.i0 ? k0 : piece.i0;
    for (int64_t i0 = first; i0 < piece.i1; i0 += kTriBlock) {
      const int64_t i1 = tri_min(i0 + kTriBlock, piece.i1);
      for (int64_t i = i0; i < i1; i += kTileRows) {
        tri_pack_a<T>(
            a + i * call.a_row + k0 * call.a_col, call.a_row, call.a_col, tri_min(kTileRows, i1 - i), k1 - k0,
            ragged_k ? i - k0 : -1, packed_a + (i - i0) * (k1 - k0));
      }
      for (int64_t j = j0; j < j1; j += n) {
        tri_tiles<T>(call, packed_a, packed_b + (j - j0) * (k1 - k0), i0, i1, j, tri_min(n, piece.j1 - j), k0, k1);
      }
    }
  }
}

// Past the caches where the result is larger than they are: a plain store would first read the line.
template <class T, bool kStream>
EDGEOPS_INLINE void tri_put(T* to, typename Lanes<T>::V v) {
#if defined(__x86_64__)
  if constexpr (kStream) {
#if EDGEOPS_VB == 64
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#elif EDGEOPS_VB == 32
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#else
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)v);
#endif
    return;
  }
#endif
  vstore<T>(to, v);
}

template <class T, bool kMultiply>
EDGEOPS_INLINE typename Lanes<T>::V tri_pair(const T* a, const T* b) {
  return kMultiply ? vload<T>(a) * vload<T>(b) : vload<T>(a) + vload<T>(b);
}

// out[lo:hi) = a combined with b, zeros in the rest of the row unless they are there already. Whole vectors from the
// start of the row, so that a streaming store never shares a line with a plain one.
template <class T, bool kMultiply, bool kStream>
EDGEOPS_INLINE void tri_row(
    const T* a, const T* b, const T* next_a, const T* next_b, T* out, int64_t lo, int64_t hi, int64_t size,
    bool zeroed) {
  typedef typename Lanes<T>::V V;
  constexpr int w = Lanes<T>::n;
  const int64_t end = size / w * w;
  const int64_t begin = tri_min(lo / w * w, end);  // first vector with something in it
  int64_t j = zeroed ? begin : 0;
  for (; j < begin; j += w) {
    tri_put<T, kStream>(out + j, V{});
  }
  const auto edge = [&] {
    T room[w];
    for (int t = 0; t < w; ++t) {
      const int64_t at = j + t;
      room[t] = at < lo || at >= hi ? T(0) : kMultiply ? a[at] * b[at] : a[at] + b[at];
    }
    tri_put<T, kStream>(out + j, vload<T>(room));
    j += w;
  };
  if (j < lo && j < end) {
    edge();
  }
  for (; j + 4 * w <= tri_min(hi, end); j += 4 * w) {
    if constexpr (kStream) {  // the hardware looks neither past a page nor past the end of a row's part
      constexpr int64_t ahead = 1024 / sizeof(T);
      const int64_t at = j + ahead;
#pragma GCC unroll 4
      for (int64_t u = 0; u < 4 * w; u += 64 / sizeof(T)) {
        __builtin_prefetch((at < hi ? a + at : next_a + (at - hi)) + u);
        __builtin_prefetch((at < hi ? b + at : next_b + (at - hi)) + u);
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      tri_put<T, kStream>(out + j + u * w, tri_pair<T, kMultiply>(a + j + u * w, b + j + u * w));
    }
  }
  for (; j + w <= tri_min(hi, end); j += w) {
    tri_put<T, kStream>(out + j, tri_pair<T, kMultiply>(a + j, b + j));
  }
  if (j < hi && j < end) {
    edge();
  }
  if (!zeroed) {
    for (; j < end; j += w) {
      tri_put<T, kStream>(out + j, V{});
    }
  }
  for (j = end; j < size; ++j) {
    out[j] = j < lo || j >= hi ? T(0) : kMultiply ? a[j] * b[j] : a[j] + b[j];
  }
}

template <class T, bool kMultiply, bool kStream>
static void tri_binary_rows(
    const T* a, int64_t a_row, const T* b, int64_t b_row, T* out, int64_t begin, int64_t end, int64_t size, bool upper,
    bool zeroed) {
  for (int64_t i = begin; i < end; ++i) {
    const T *x = a + i * a_row, *y = b + i * b_row;
    const int64_t next = upper ? i + 1 : 0;
    tri_row<T, kMultiply, kStream>(
        x, y, x + a_row + next, y + b_row + next, out + i * size, upper ? i : 0, upper ? size : i + 1, size, zeroed);
  }
#if defined(__x86_64__)
  if constexpr (kStream) {
    _mm_sfence();
  }
#endif
}

template <class St>
static void tri_binary(
    const void* a, int64_t a_row, const void* b, int64_t b_row, void* out, int64_t begin, int64_t end, int64_t size,
    bool multiply, bool upper, bool stream, bool zeroed) {
  typedef typename St::S S;
  typedef typename St::T T;
  const S *x = static_cast<const S*>(a), *y = static_cast<const S*>(b);
  S* target = static_cast<S*>(out);
  if constexpr (sizeof(S) == sizeof(T)) {
    // streaming stores need rows that start on a vector
    stream = stream && size % Lanes<T>::n == 0 && reinterpret_cast<uintptr_t>(target) % EDGEOPS_VB == 0;
    auto* run = multiply ? (stream ? tri_binary_rows<T, true, true> : tri_binary_rows<T, true, false>)
                         : (stream ? tri_binary_rows<T, false, true> : tri_binary_rows<T, false, false>);
    run(x, a_row, y, b_row, target, begin, end, size, upper, zeroed);
  } else {
    constexpr int64_t slice = 1024;
    T left[slice], right[slice];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = upper ? i : 0, to = upper ? size : i + 1;
      if (!zeroed) {
        __builtin_memset(target + i * size, 0, from * sizeof(S));
        __builtin_memset(target + i * size + to, 0, (size - to) * sizeof(S));
      }
      for (int64_t j = from; j < to; j += slice) {
        const int64_t n = tri_min(slice, to - j);
        widen<St>(x + i * a_row + j, left, n);
        widen<St>(y + i * b_row + j, right, n);
        for (int64_t t = 0; t < n; ++t) {
          left[t] = multiply ? left[t] * right[t] : left[t] + right[t];
        }
        narrow<St>(left, target + i * size + j, n);
      }
    }
  }
}

template <class St>
static void tri_widen(const void* from, void* to, int64_t n) {
  widen<St>(static_cast<const typename St::S*>(from), static_cast<typename St::T*>(to), n);
}

template <class St>
static void tri_narrow(const void* from, void* to, int64_t n) {
  narrow<St>(static_cast<const typename St::T*>(from), static_cast<typename St::S*>(to), n);
}
