// SPDX-License-Identifier: Apache-2.0
// Row kernels: bias + GELU, bias + residual + LayerNorm, pooling. Included once per instruction set.

#include "rows_common.inl.h"

// x * Phi(x)
EDGEOPS_INLINE Lanes<float>::V gelu_erf(Lanes<float>::V x) {
  Lanes<float>::V bell;
  const Lanes<float>::V tail = normal_tail(x, &bell);
  return x * (x > 0.0f ? 1.0f - tail : tail);
}

EDGEOPS_INLINE Lanes<double>::V gelu_erf(Lanes<double>::V x) {
  for (int i = 0; i < Lanes<double>::n; ++i) {
    x[i] = 0.5 * x[i] * __builtin_erfc(-0.70710678118654752 * x[i]);
  }
  return x;
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
EDGEOPS_INLINE Lanes<float>::V gelu_tanh(Lanes<float>::V x) {
  typedef Lanes<float>::V V;
  const V power = x * (x * x * 0.044715f + 1.0f) * -2.3022082f;  // -2 sqrt(2 / pi) log2(e)
  const V most = vset<float>(126.0f);
  const V y = x / (1.0f + vexp2(power > most ? most : power));
  return power > most ? x * 0.0f : y;  // not x / 2^126, which is large for the largest x
}

EDGEOPS_INLINE Lanes<double>::V gelu_tanh(Lanes<double>::V x) {
  for (int i = 0; i < Lanes<double>::n; ++i) {
    const double u = 0.79788456080286536 * (x[i] + 0.044715 * x[i] * x[i] * x[i]);
    x[i] = 0.5 * x[i] * (1 + __builtin_tanh(u));
  }
  return x;
}

template <class T>
EDGEOPS_INLINE void gelu_slice(const T* x, const T* bias, T* out, int64_t n, bool tanh) {
  constexpr int w = Lanes<T>::n;
  int64_t i = 0;
  if (tanh) {
    for (; i + w <= n; i += w) {
      vstore<T>(out + i, gelu_tanh(vload<T>(x + i) + vload<T>(bias + i)));
    }
  } else {
    for (; i + w <= n; i += w) {
      vstore<T>(out + i, gelu_erf(vload<T>(x + i) + vload<T>(bias + i)));
    }
  }
  if (i < n) {
    T last[2 * w] = {};
    for (int64_t j = i; j < n; ++j) {
      last[j - i] = x[j] + bias[j];
    }
    vstore<T>(last, tanh ? gelu_tanh(vload<T>(last)) : gelu_erf(vload<T>(last)));
    for (int64_t j = i; j < n; ++j) {
      out[j] = last[j - i];
    }
  }
}

template <class St>
static void bias_gelu_rows(
    const void* x, const void* bias, void* out, int64_t begin, int64_t end, int64_t width, bool tanh) {
  typedef typename St::S S;
  typedef typename St::T T;
  T x_room[kSlice], bias_room[kSlice], out_room[kSlice];
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < width; c += kSlice) {
      const int64_t n = width - c < kSlice ? width - c : kSlice;
      const T* row = row_slice<St>(static_cast<const S*>(x) + r * width + c, n, x_room);
      const T* add = row_slice<St>(static_cast<const S*>(bias) + c, n, bias_room);
      S* target = static_cast<S*>(out) + r * width + c;
      if constexpr (sizeof(S) == sizeof(T)) {
        gelu_slice<T>(row, add, target, n, tanh);
      } else {
        gelu_slice<T>(row, add, out_room, n, tanh);
        narrow<St>(out_room, target, n);
      }
    }
  }
}

// sum[0..n) = x + residual + bias; returns the sum of all
template <class T, bool kBias>
EDGEOPS_INLINE T add_rows(const T* x, const T* residual, const T* bias, T* sum, int64_t n) {
  typedef typename Lanes<T>::V V;
  constexpr int w = Lanes<T>::n;
  V total[2] = {};
  int64_t i = 0;
  for (; i + 2 * w <= n; i += 2 * w) {
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      V y = vload<T>(x + i + u * w) + vload<T>(residual + i + u * w);
      if constexpr (kBias) {
        y += vload<T>(bias + i + u * w);
      }
      vstore<T>(sum + i + u * w, y);
      total[u] += y;
    }
  }
  T rest = 0;
  for (; i < n; ++i) {
    sum[i] = x[i] + residual[i] + (kBias ? bias[i] : T(0));
    rest += sum[i];
  }
  V folded[8] = {total[0] + total[1]};
  T lanes[8];
  fold_lanes<T, false>(folded, 8, lanes);
  return lanes[0] + rest;
}

template <class T>
EDGEOPS_INLINE T squares(const T* x, T mean, int64_t n) {
  typedef typename Lanes<T>::V V;
  constexpr int w = Lanes<T>::n;
  V total[2] = {};
  int64_t i = 0;
  for (; i + 2 * w <= n; i += 2 * w) {
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      const V y = vload<T>(x + i + u * w) - mean;
      total[u] += y * y;
    }
  }
  T rest = 0;
  for (; i < n; ++i) {
    rest += (x[i] - mean) * (x[i] - mean);
  }
  V folded[8] = {total[0] + total[1]};
  T lanes[8];
  fold_lanes<T, false>(folded, 8, lanes);
  return lanes[0] + rest;
}

template <class St>
static void add_layer_norm_rows(
    const void* x, const void* x_bias, const void* residual, const void* weight, const void* bias, double eps,
    void* out, void* mean, void* rstd, int64_t begin, int64_t end, int64_t width) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr bool same = sizeof(S) == sizeof(T);
  constexpr int w = Lanes<T>::n;
  // three vectors of the layer in compute type, the row's sum, and one row of room
  T* memory = static_cast<T*>(__builtin_malloc((same ? 1 : 5) * width * sizeof(T) + 64));
  T* sum = memory;
  T* room = memory + width;
  const T *scale = static_cast<const T*>(weight), *shift = static_cast<const T*>(bias),
          *add = static_cast<const T*>(x_bias);
  if constexpr (!same) {
    widen<St>(static_cast<const S*>(weight), memory + 2 * width, width);
    widen<St>(static_cast<const S*>(bias), memory + 3 * width, width);
    scale = memory + 2 * width;
    shift = memory + 3 * width;
    if (x_bias != nullptr) {
      widen<St>(static_cast<const S*>(x_bias), memory + 4 * width, width);
      add = memory + 4 * width;
    }
  }
  for (int64_t r = begin; r < end; ++r) {
    const S* x_row = static_cast<const S*>(x) + r * width;
    const S* residual_row = static_cast<const S*>(residual) + r * width;
    S* target = static_cast<S*>(out) + r * width;
    T total;
    if constexpr (same) {
      total = add != nullptr ? add_rows<T, true>(x_row, residual_row, add, sum, width)
                             : add_rows<T, false>(x_row, residual_row, add, sum, width);
    } else {
      widen<St>(x_row, sum, width);
      widen<St>(residual_row, room, width);
      total = add != nullptr ? add_rows<T, true>(sum, room, add, sum, width)
                             : add_rows<T, false>(sum, room, add, sum, width);
    }
    const T center = total / static_cast<T>(width);
    const T variance = squares<T>(sum, center, width) / static_cast<T>(width);
    const T inverse = T(1) / static_cast<T>(__builtin_sqrt(static_cast<double>(variance) + eps));
    T* result = same ? reinterpret_cast<T*>(target) : room;
    int64_t i = 0;
    for (; i + w <= width; i += w) {
      vstore<T>(result + i, (vload<T>(sum + i) - center) * inverse * vload<T>(scale + i) + vload<T>(shift + i));
    }
    for (; i < width; ++i) {
      result[i] = (sum[i] - center) * inverse * scale[i] + shift[i];
    }
    if constexpr (!same) {
      narrow<St>(room, target, width);
    }
    static_cast<T*>(mean)[r] = center;
    static_cast<T*>(rstd)[r] = inverse;
  }
  __builtin_free(memory);
}

// Columns are folded a few vectors at a time over all rows: the accumulators stay in registers.
enum class PoolFold { sum, max, min };

template <class T, PoolFold kFold>
EDGEOPS_INLINE void pool_columns(const T* x, int64_t ld, int64_t rows, int64_t width, T* out) {
  typedef typename Lanes<T>::V V;
  constexpr int w = Lanes<T>::n;
  constexpr int u = 4;
  int64_t c = 0;
  for (; c + u * w <= width; c += u * w) {
    V acc[u];
#pragma GCC unroll 4
    for (int i = 0; i < u; ++i) {
      acc[i] = vload<T>(x + c + i * w);
    }
    for (int64_t r = 1; r < rows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < u; ++i) {
        const V next = vload<T>(x + r * ld + c + i * w);
        if constexpr (kFold == PoolFold::max) {
          acc[i] = acc[i] >= next || acc[i] != acc[i] ? acc[i] : next;  // a NaN stays
        } else if constexpr (kFold == PoolFold::min) {
          acc[i] = acc[i] <= next || acc[i] != acc[i] ? acc[i] : next;
        } else {
          acc[i] += next;
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < u; ++i) {
      vstore<T>(out + c + i * w, acc[i]);
    }
  }
  for (; c < width; ++c) {
    T acc = x[c];
    for (int64_t r = 1; r < rows; ++r) {
      const T next = x[r * ld + c];
      if constexpr (kFold == PoolFold::sum) {
        acc += next;
      } else {
        acc = acc != acc || (kFold == PoolFold::max ? acc >= next : acc <= next) ? acc : next;
      }
    }
    out[c] = acc;
  }
}

// log(sum(exp(x))) over rows, from their maximum; an infinite or NaN maximum is the result
template <class T>
static void pool_logsumexp(const T* x, int64_t ld, int64_t rows, int64_t width, T* out) {
  constexpr int w = Lanes<T>::n;
  const T log2e = static_cast<T>(1.4426950408889634);
  pool_columns<T, PoolFold::max>(x, ld, rows, width, out);
  for (int64_t c = 0; c < width; c += w) {
    const int64_t n = width - c < w ? width - c : w;
    T top[w] = {}, row[w] = {}, sums[w];
    for (int64_t i = 0; i < n; ++i) {
      top[i] = out[c + i];
    }
    typename Lanes<T>::V acc = {};
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = x + r * ld + c;
      if (n == w) {
        acc += vexp2((vload<T>(from) - vload<T>(top)) * log2e);
      } else {
        for (int64_t i = 0; i < n; ++i) {
          row[i] = from[i];
        }
        acc += vexp2((vload<T>(row) - vload<T>(top)) * log2e);
      }
    }
    vstore<T>(sums, acc);
    for (int64_t i = 0; i < n; ++i) {
      if (top[i] - top[i] == T(0)) {
        out[c + i] = top[i] + static_cast<T>(__builtin_log(static_cast<double>(sums[i])));
      }
    }
  }
}

template <class St>
static void pool_rows(const void* x, int64_t ld, int64_t rows, int64_t width, int64_t mode, void* out) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr bool same = sizeof(S) == sizeof(T);
  const S* src = static_cast<const S*>(x);
  S* target = static_cast<S*>(out);
  if (rows == 0 || width == 0) {
    T nothing[1] = {mode == 4 ? -static_cast<T>(__builtin_inf()) : T(0)};
    S stored[1];
    narrow<St>(nothing, stored, 1);
    for (int64_t c = 0; c < width; ++c) {
      target[c] = stored[0];
    }
    return;
  }
  T* memory = same ? nullptr : static_cast<T*>(__builtin_malloc((rows + 1) * width * sizeof(T)));
  T* result = same ? reinterpret_cast<T*>(target) : memory + rows * width;
  const T* values = reinterpret_cast<const T*>(src);
  if constexpr (!same) {
    for (int64_t r = 0; r < rows; ++r) {
      widen<St>(src + r * ld, memory + r * width, width);
    }
    values = memory;
    ld = width;
  }
  if (mode == 2) {
    pool_columns<T, PoolFold::max>(values, ld, rows, width, result);
  } else if (mode == 3) {
    pool_columns<T, PoolFold::min>(values, ld, rows, width, result);
  } else if (mode == 4) {
    pool_logsumexp<T>(values, ld, rows, width, result);
  } else {
    pool_columns<T, PoolFold::sum>(values, ld, rows, width, result);
    if (mode == 1) {
      for (int64_t c = 0; c < width; ++c) {
        result[c] /= static_cast<T>(rows);
      }
    }
  }
  if constexpr (!same) {
    narrow<St>(result, target, width);
    __builtin_free(memory);
  }
}
