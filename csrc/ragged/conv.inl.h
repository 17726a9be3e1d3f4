// SPDX-License-Identifier: Apache-2.0
// Inner loops of ragged convolution: an implicit product without a column matrix. Included once per instruction set.
//
// Six result rows and two vectors of channels stay in registers; each row reads its own source row for a tap, so that
// rows of different sequences share a tile and no tap crosses a boundary. Every result is one chain of multiply-adds
// for each tap and block of channels: its bits do not depend on the rows beside it.
#include "tile.inl.h"

constexpr int64_t kConvDepth = 256;     // input channels summed at a time: a panel of them stays in the L1 cache
constexpr int64_t kConvGradRows = 256;  // rows summed at a time in the weight gradient

EDGEOPS_INLINE int64_t conv_min(int64_t a, int64_t b) {
  return a < b ? a : b;
}

template <class T>
static void conv_pack_weight(const void* weight, int64_t out, int64_t in, int64_t taps, void* panels) {
  constexpr int n = Tile<T>::n;
  const T* w = static_cast<const T*>(weight);
  T* to = static_cast<T*>(panels);
  for (int64_t o0 = 0; o0 < out; o0 += n, to += n * in * taps) {
    for (int64_t c = 0; c < in; ++c) {
      for (int64_t k = 0; k < taps; ++k) {
        T* line = to + (k * in + c) * n;
        for (int64_t j = 0; j < n; ++j) {
          line[j] = o0 + j < out ? w[((o0 + j) * in + c) * taps + k] : T(0);
        }
      }
    }
  }
}

// tile[r, :] += sum over c < depth of rows[r][c] * panel[c, :]
template <class T>
EDGEOPS_INLINE void conv_tile(Tile<T>& tile, const T* const* rows, const T* panel, int64_t depth) {
  const T *a0 = rows[0], *a1 = rows[1], *a2 = rows[2], *a3 = rows[3], *a4 = rows[4], *a5 = rows[5];
  for (int64_t c = 0; c < depth; ++c) {
    const auto b0 = vload<T>(panel + c * Tile<T>::n), b1 = vload<T>(panel + c * Tile<T>::n + Lanes<T>::n);
    const T a[kTileRows] = {a0[c], a1[c], a2[c], a3[c], a4[c], a5[c]};
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      const auto v = vset<T>(a[r]);
      tile.acc[r][0] += v * b0;
      tile.acc[r][1] += v * b1;
    }
  }
}

template <class T>
static void conv_forward(const ConvForward& call, int64_t begin, int64_t end) {
  constexpr int n = Tile<T>::n;
  const T *x = static_cast<const T*>(call.x), *zeros = static_cast<const T*>(call.zeros);
  const T *panels = static_cast<const T*>(call.panels), *bias = static_cast<const T*>(call.bias);
  T* out = static_cast<T*>(call.out);
  for (int64_t o = 0; o < call.out_channels; o += n, panels += n * call.in * call.taps) {
    const int64_t cols = conv_min(n, call.out_channels - o);
    bool first = true;
    for (int64_t k = 0; k < call.taps; ++k) {
      for (int64_t c = 0; c < call.in; c += kConvDepth, first = false) {
        const T* panel = panels + (k * call.in + c) * n;
        const int64_t depth = conv_min(kConvDepth, call.in - c);
        for (int64_t r = begin; r < end; r += kTileRows) {
          const T* rows[kTileRows];
          for (int64_t i = 0; i < kTileRows; ++i) {
            const int64_t from = r + i < end ? call.source[(r + i) * call.taps + k] : -1;
            rows[i] = from < 0 ? zeros : x + from * call.x_row + c;
          }
          Tile<T> tile = {};
          conv_tile<T>(tile, rows, panel, depth);
          tile_store<T>(tile, T(1), !first, out + r * call.out_row + o, call.out_row, end - r, cols);
        }
      }
    }
    if (bias != nullptr) {
      for (int64_t r = begin; r < end; ++r) {
        for (int64_t j = 0; j < cols; ++j) {
          out[r * call.out_row + o + j] += bias[o + j];
        }
      }
    }
  }
}

template <class T>
static int64_t conv_weight_scratch(const ConvWeightGrad& call) {
  constexpr int64_t n = Tile<T>::n;
  const int64_t in = (call.in + n - 1) / n * n;
  return static_cast<int64_t>(sizeof(T)) * kConvGradRows * (in + kConvOut + kTileRows) + 128;
}

// Blocks of rows that have a source: their gradients packed six wide, their source rows in panels.
template <class T>
static void conv_weight_grad(const ConvWeightGrad& call, int64_t tap, int64_t o_begin, int64_t o_end, void* scratch) {
  constexpr int n = Tile<T>::n;
  const T *grad = static_cast<const T*>(call.grad), *x = static_cast<const T*>(call.x);
  T* dw = static_cast<T*>(call.dw) + tap * call.out_channels * call.in;
  T* packed_x = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
  T* packed_g = packed_x + kConvGradRows * ((call.in + n - 1) / n * n);
  for (int64_t o = o_begin; o < o_end; ++o) {
    for (int64_t c = 0; c < call.in; ++c) {
      dw[o * call.in + c] = T(0);
    }
  }
  int64_t row[kConvGradRows];
  for (int64_t r = 0; r < call.rows;) {
    int64_t depth = 0;
    for (; r < call.rows && depth < kConvGradRows; ++r) {
      if (call.source[r * call.taps + tap] >= 0) {
        row[depth++] = r;
      }
    }
    for (int64_t c = 0; c < call.in; c += n) {
      T* panel = packed_x + c * depth;
      const int64_t have = conv_min(n, call.in - c);
      for (int64_t t = 0; t < depth; ++t) {
        const T* from = x + call.source[row[t] * call.taps + tap] * call.x_row + c;
        if (have == n) {
          vstore<T>(panel + t * n, vload<T>(from));
          vstore<T>(panel + t * n + Lanes<T>::n, vload<T>(from + Lanes<T>::n));
          continue;
        }
        for (int64_t j = 0; j < n; ++j) {
          panel[t * n + j] = j < have ? from[j] : T(0);
        }
      }
    }
    for (int64_t o = o_begin; o < o_end; o += kTileRows) {
      T* panel = packed_g + (o - o_begin) * depth;
      const int64_t have = conv_min(kTileRows, o_end - o);
      for (int64_t t = 0; t < depth; ++t) {
        for (int64_t i = 0; i < kTileRows; ++i) {
          panel[t * kTileRows + i] = i < have ? grad[row[t] * call.grad_row + o + i] : T(0);
        }
      }
    }
    for (int64_t c = 0; c < call.in; c += n) {
      for (int64_t o = o_begin; o < o_end; o += kTileRows) {
        Tile<T> tile = {};
        tile_packed<T>(tile, packed_g + (o - o_begin) * depth, packed_x + c * depth, depth);
        tile_store<T>(tile, T(1), true, dw + o * call.in + c, call.in, o_end - o, call.in - c);
      }
    }
  }
}

template <class St>
static void conv_widen(const void* from, void* to, int64_t n) {
  widen<St>(static_cast<const typename St::S*>(from), static_cast<typename St::T*>(to), n);
}

template <class St>
static void conv_narrow(const void* from, void* to, int64_t n) {
  narrow<St>(static_cast<const typename St::T*>(from), static_cast<typename St::S*>(to), n);
}
