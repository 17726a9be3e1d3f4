// SPDX-License-Identifier: Apache-2.0
// Backward row kernels: bias + GELU, bias + residual + LayerNorm, pooling. Included once per instruction set.

#include "rows_common.inl.h"

// Phi(x) + x phi(x); both share one exponential
EDGEOPS_INLINE Lanes<float>::V gelu_erf_slope(Lanes<float>::V x) {
  Lanes<float>::V bell;
  const Lanes<float>::V tail = normal_tail(x, &bell);
  return (x > 0.0f ? 1.0f - tail : tail) + x * bell * 0.39894228f;  // 1 / sqrt(2 pi)
}

EDGEOPS_INLINE Lanes<double>::V gelu_erf_slope(Lanes<double>::V x) {
  for (int i = 0; i < Lanes<double>::n; ++i) {
    const double bell = __builtin_exp(-0.5 * x[i] * x[i]);
    x[i] = 0.5 * __builtin_erfc(-0.70710678118654752 * x[i]) + x[i] * bell * 0.39894228040143268;
  }
  return x;
}

// s + x s (1 - s) 2u', s = 1 / (1 + e), e = exp(-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
EDGEOPS_INLINE Lanes<float>::V gelu_tanh_slope(Lanes<float>::V x) {
  typedef Lanes<float>::V V;
  const V square = x * x;
  const V power = x * (square * 0.044715f + 1.0f) * -2.3022082f;  // -2 sqrt(2 / pi) log2(e)
  const V most = vset<float>(60.0f), zero = {};
  const V e = vexp2(power > most ? most : power);
  const V s = 1.0f / (1.0f + e);
  const V y = s + x * (e * s * s) * (square * 0.21406445f + 1.5957691f);  // 2 sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
  // far out on either side, where x^2 may overflow, the slope is 0 or 1 to the last bit
  return power > most ? zero : power < -most ? zero + 1.0f : y;
}

EDGEOPS_INLINE Lanes<double>::V gelu_tanh_slope(Lanes<double>::V x) {
  for (int i = 0; i < Lanes<double>::n; ++i) {
    const double square = x[i] * x[i];
    const double u2 = 1.5957691216057308 * x[i] * (1 + 0.044715 * square);
    if (u2 < -600 || u2 > 600) {
      x[i] = u2 < 0 ? 0 : 1;
      continue;
    }
    const double e = __builtin_exp(-__builtin_fabs(u2)), s = 1 / (1 + e);
    x[i] = (u2 < 0 ? e * s : s) + x[i] * (e * s * s) * 1.5957691216057308 * (1 + 0.134145 * square);
  }
  return x;
}

template <class T, bool kTanh>
EDGEOPS_INLINE typename Lanes<T>::V gelu_slope(typename Lanes<T>::V x) {
  if constexpr (kTanh) {
    return gelu_tanh_slope(x);
  } else {
    return gelu_erf_slope(x);
  }
}

template <class T, bool kTanh>
EDGEOPS_INLINE void gelu_slope_slice(const T* grad, const T* x, const T* bias, T* dx, T* columns, int64_t n) {
  typedef typename Lanes<T>::V V;
  constexpr int w = Lanes<T>::n;
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    const V d = vload<T>(grad + i) * gelu_slope<T, kTanh>(vload<T>(x + i) + vload<T>(bias + i));
    vstore<T>(dx + i, d);
    vstore<T>(columns + i, vload<T>(columns + i) + d);
  }
  if (i < n) {
    T last[w] = {};
    for (int64_t j = i; j < n; ++j) {
      last[j - i] = x[j] + bias[j];
    }
    vstore<T>(last, gelu_slope<T, kTanh>(vload<T>(last)));
    for (int64_t j = i; j < n; ++j) {
      dx[j] = grad[j] * last[j - i];
      columns[j] += dx[j];
    }
  }
}

template <class St>
static void bias_gelu_bwd_rows(
    const void* grad, const void* x, const void* bias, void* dx, void* columns, int64_t begin, int64_t end,
    int64_t width, bool tanh) {
  typedef typename St::S S;
  typedef typename St::T T;
  T grad_room[kSlice], x_room[kSlice], bias_room[kSlice], dx_room[kSlice];
  T* sums = static_cast<T*>(columns);
  __builtin_memset(sums, 0, width * sizeof(T));
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < width; c += kSlice) {
      const int64_t n = width - c < kSlice ? width - c : kSlice;
      const T* add = row_slice<St>(static_cast<const S*>(bias) + c, n, bias_room);
      const T* up = row_slice<St>(static_cast<const S*>(grad) + r * width + c, n, grad_room);
      const T* row = row_slice<St>(static_cast<const S*>(x) + r * width + c, n, x_room);
      S* target = static_cast<S*>(dx) + r * width + c;
      T* result = dx_room;
      if constexpr (sizeof(S) == sizeof(T)) {
        result = target;
      }
      if (tanh) {
        gelu_slope_slice<T, true>(up, row, add, result, sums + c, n);
      } else {
        gelu_slope_slice<T, false>(up, row, add, result, sums + c, n);
      }
      if constexpr (sizeof(S) != sizeof(T)) {
        narrow<St>(dx_room, target, n);
      }
    }
  }
}

// A row's vectors in compute type, and where its results go.
template <class T>
struct NormRow {
  const T *grad, *x, *residual, *add, *weight;
  T *normal, *dsum;
  T *dweight, *dbias, *dx_bias;
};

// One row: dsum = rstd (g - mean(g) - n mean(g n)), g = grad * weight, n = (sum - mean) rstd; adds to the column sums.
template <class T, bool kBias>
EDGEOPS_INLINE void norm_row_bwd(const NormRow<T>& row, T mean, T rstd, int64_t width) {
  typedef typename Lanes<T>::V V;
  constexpr int w = Lanes<T>::n;
  V first = {}, second = {};
  int64_t i = 0;
  for (; i + w <= width; i += w) {
    V z = vload<T>(row.x + i) + vload<T>(row.residual + i);
    if constexpr (kBias) {
      z += vload<T>(row.add + i);
    }
    const V n = (z - mean) * rstd;
    const V up = vload<T>(row.grad + i);
    const V g = up * vload<T>(row.weight + i);
    vstore<T>(row.normal + i, n);
    vstore<T>(row.dweight + i, vload<T>(row.dweight + i) + up * n);
    vstore<T>(row.dbias + i, vload<T>(row.dbias + i) + up);
    first += g;
    second += g * n;
  }
  T rest_first = 0, rest_second = 0;
  for (int64_t j = i; j < width; ++j) {
    const T n = (row.x[j] + row.residual[j] + (kBias ? row.add[j] : T(0)) - mean) * rstd;
    const T g = row.grad[j] * row.weight[j];
    row.normal[j] = n;
    row.dweight[j] += row.grad[j] * n;
    row.dbias[j] += row.grad[j];
    rest_first += g;
    rest_second += g * n;
  }
  V folded[8] = {first, second};
  T lanes[8];
  fold_lanes<T, false>(folded, 8, lanes);
  const T average = (lanes[0] + rest_first) / static_cast<T>(width);
  const T along = (lanes[1] + rest_second) / static_cast<T>(width);
  for (i = 0; i + w <= width; i += w) {
    const V g = vload<T>(row.grad + i) * vload<T>(row.weight + i);
    const V d = rstd * (g - average - vload<T>(row.normal + i) * along);
    vstore<T>(row.dsum + i, d);
    if constexpr (kBias) {
      vstore<T>(row.dx_bias + i, vload<T>(row.dx_bias + i) + d);
    }
  }
  for (; i < width; ++i) {
    const T d = rstd * (row.grad[i] * row.weight[i] - average - row.normal[i] * along);
    row.dsum[i] = d;
    if constexpr (kBias) {
      row.dx_bias[i] += d;
    }
  }
}

template <class St>
static void add_layer_norm_bwd_rows(
    const void* grad, const void* x, const void* x_bias, const void* residual, const void* mean, const void* rstd,
    const void* weight, void* dsum, void* columns, int64_t begin, int64_t end, int64_t width) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr bool same = sizeof(S) == sizeof(T);
  T* memory = static_cast<T*>(__builtin_malloc((same ? 1 : 7) * width * sizeof(T) + 64));
  T* sums = static_cast<T*>(columns);
  __builtin_memset(sums, 0, 3 * width * sizeof(T));
  NormRow<T> row = {};
  row.normal = memory;
  row.dweight = sums;
  row.dbias = sums + width;
  row.dx_bias = sums + 2 * width;
  if constexpr (same) {
    row.weight = static_cast<const T*>(weight);
    row.add = static_cast<const T*>(x_bias);
  } else {
    widen<St>(static_cast<const S*>(weight), memory + width, width);
    row.weight = memory + width;
    if (x_bias != nullptr) {
      widen<St>(static_cast<const S*>(x_bias), memory + 2 * width, width);
      row.add = memory + 2 * width;
    }
  }
  for (int64_t r = begin; r < end; ++r) {
    const S* grad_row = static_cast<const S*>(grad) + r * width;
    const S* x_row = static_cast<const S*>(x) + r * width;
    const S* residual_row = static_cast<const S*>(residual) + r * width;
    S* target = static_cast<S*>(dsum) + r * width;
    if constexpr (same) {
      row.grad = grad_row;
      row.x = x_row;
      row.residual = residual_row;
      row.dsum = target;
    } else {
      widen<St>(grad_row, memory + 3 * width, width);
      widen<St>(x_row, memory + 4 * width, width);
      widen<St>(residual_row, memory + 5 * width, width);
      row.grad = memory + 3 * width;
      row.x = memory + 4 * width;
      row.residual = memory + 5 * width;
      row.dsum = memory + 6 * width;
    }
    const T center = static_cast<const T*>(mean)[r], inverse = static_cast<const T*>(rstd)[r];
    if (x_bias != nullptr) {
      norm_row_bwd<T, true>(row, center, inverse, width);
    } else {
      norm_row_bwd<T, false>(row, center, inverse, width);
    }
    if constexpr (!same) {
      narrow<St>(row.dsum, target, width);
    }
  }
  __builtin_free(memory);
}

template <class St>
static void add_columns_of_blocks(
    const void* columns, int64_t blocks, int64_t stride, void* out, int64_t begin, int64_t end) {
  typedef typename St::T T;
  T total[kSlice];
  const T* source = static_cast<const T*>(columns);
  for (int64_t c = begin; c < end; c += kSlice) {
    const int64_t n = end - c < kSlice ? end - c : kSlice;
    __builtin_memset(total, 0, sizeof(total));
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t i = 0; i < n; ++i) {
        total[i] += source[b * stride + c + i];
      }
    }
    narrow<St>(total, static_cast<typename St::S*>(out) + c, n);
  }
}

template <class St>
static void pool_bwd_rows(const void* grad, int64_t rows, int64_t count, int64_t width, int64_t mode, void* dx) {
  typedef typename St::S S;
  typedef typename St::T T;
  const S* up = static_cast<const S*>(grad);
  S* target = static_cast<S*>(dx);
  T room[kSlice];
  for (int64_t c = 0; c < width; c += kSlice) {  // the first row, which the others repeat
    const int64_t n = width - c < kSlice ? width - c : kSlice;
    widen<St>(up + c, room, n);
    if (mode == 1) {
      for (int64_t i = 0; i < n; ++i) {
        room[i] /= static_cast<T>(count);
      }
    }
    narrow<St>(room, target + c, n);
  }
  for (int64_t r = 1; r < rows; ++r) {
    __builtin_memcpy(target + r * width, target, width * sizeof(S));
  }
}

// Weights of a row before they are normalised: 1 where it reaches the extreme, or exp(x - logsumexp) where that is
// finite.
template <class T>
EDGEOPS_INLINE void pool_weights(const T* row, const T* best, int64_t n, bool soft, T* w) {
  typedef typename Lanes<T>::V V;
  constexpr int lanes = Lanes<T>::n;
  for (int64_t i = 0; i < n; ++i) {
    w[i] = row[i] == best[i] ? T(1) : T(0);
  }
  for (int64_t i = 0; soft && i < n; i += lanes) {
    V d = {};
    const int64_t count = n - i < lanes ? n - i : lanes;
    for (int64_t l = 0; l < count; ++l) {
      d[l] = (row[i + l] - best[i + l]) * T(1.4426950408889634);
    }
    const V e = vexp2(d);
    for (int64_t l = 0; l < count; ++l) {
      w[i + l] = __builtin_isinf(best[i + l]) ? w[i + l] : e[l];
    }
  }
}

template <class St>
static void pool_shared_bwd_rows(
    const void* grad, const void* x, int64_t ld, const void* out, int64_t rows, int64_t width, bool soft, void* dx) {
  typedef typename St::S S;
  typedef typename St::T T;
  T up[kSlice], best[kSlice], share[kSlice], room[kSlice], hit[kSlice];
  for (int64_t c = 0; c < width; c += kSlice) {
    const int64_t n = width - c < kSlice ? width - c : kSlice;
    widen<St>(static_cast<const S*>(grad) + c, up, n);
    widen<St>(static_cast<const S*>(out) + c, best, n);
    __builtin_memset(share, 0, sizeof(share));
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = row_slice<St>(static_cast<const S*>(x) + r * ld + c, n, room);
      pool_weights<T>(row, best, n, soft, hit);
      for (int64_t i = 0; i < n; ++i) {
        share[i] += hit[i];
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      share[i] = up[i] / share[i];  // none reach a NaN: the gradient is NaN there, as with torch.amax
    }
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = row_slice<St>(static_cast<const S*>(x) + r * ld + c, n, room);
      pool_weights<T>(row, best, n, soft, hit);
      for (int64_t i = 0; i < n; ++i) {
        hit[i] *= share[i];
      }
      narrow<St>(hit, static_cast<S*>(dx) + r * width + c, n);
    }
  }
}
