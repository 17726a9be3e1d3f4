// SPDX-License-Identifier: Apache-2.0
// Register tiles of matrix products: kTileRows rows by two vectors. Included once per instruction set.

constexpr int kTileRows = 6;  // 6 x 2 vectors of accumulators + 2 + 1 fit in 16 registers

template <class T>
struct Tile {
  typedef typename Lanes<T>::V V;
  static constexpr int n = 2 * Lanes<T>::n;  // columns

  V acc[kTileRows][2];
};

// tile[r, :] += a[k, r] * b[k, :] for k < depth; a and b packed, kTileRows and n values for each k
template <class T>
EDGEOPS_INLINE void tile_packed(Tile<T>& tile, const T* a, const T* b, int64_t depth) {
  typedef typename Lanes<T>::V V;
  for (int64_t k = 0; k < depth; ++k) {
    const V b0 = vload<T>(b + k * Tile<T>::n), b1 = vload<T>(b + k * Tile<T>::n + Lanes<T>::n);
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      const V x = vset<T>(a[k * kTileRows + r]);
      tile.acc[r][0] += x * b0;
      tile.acc[r][1] += x * b1;
    }
  }
}

// c[r, :] (+)= alpha * tile[r, :] for the first `rows` rows and `cols` columns
template <class T>
EDGEOPS_INLINE void tile_store(const Tile<T>& tile, T alpha, bool add, T* c, int64_t ldc, int64_t rows, int64_t cols) {
  constexpr int w = Lanes<T>::n;
  if (rows >= kTileRows && cols >= Tile<T>::n) {
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        T* to = c + r * ldc + h * w;
        vstore<T>(to, add ? vload<T>(to) + tile.acc[r][h] * alpha : tile.acc[r][h] * alpha);
      }
    }
    return;
  }
  T room[kTileRows][Tile<T>::n];
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) {
    vstore<T>(room[r], tile.acc[r][0] * alpha);
    vstore<T>(room[r] + w, tile.acc[r][1] * alpha);
  }
  for (int64_t r = 0; r < rows && r < kTileRows; ++r) {
    for (int64_t j = 0; j < cols && j < Tile<T>::n; ++j) {
      c[r * ldc + j] = add ? c[r * ldc + j] + room[r][j] : room[r][j];
    }
  }
}
