// SPDX-License-Identifier: Apache-2.0
// Inner loops of segment normalisation: rows in order and whole, sums of each column held beside. Included once per
// instruction set.
#include "columns.inl.h"

// A vector in compute type, or the value that stands for one that is absent.
template <class St>
EDGEOPS_INLINE void norm_vector(const void* from, typename St::T absent, int64_t n, typename St::T* to) {
  if (from != nullptr) {
    widen<St>(static_cast<const typename St::S*>(from), to, n);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    to[i] = absent;
  }
}

template <class St>
static void norm_forward(
    const void* x_in, int64_t ld, const void* weight, const void* bias, double eps, void* out_in, int64_t ld_out,
    void* mean_out, void* rstd_out, int64_t rows, int64_t cols) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr bool same = sizeof(S) == sizeof(T);
  const S* x = static_cast<const S*>(x_in);
  S* out = static_cast<S*>(out_in);
  T *mean = static_cast<T*>(mean_out), *rstd = static_cast<T*>(rstd_out);
  T room[kNormCols], result[kNormCols], scale[kNormCols], shift[kNormCols], sum[kNormCols] = {};
  norm_vector<St>(weight, T(1), cols, scale);
  norm_vector<St>(bias, T(0), cols, shift);
  const T count = static_cast<T>(rows > 0 ? rows : 1);
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = row_slice<St>(x + r * ld, cols, room);
    column_lanes<T>(cols, [&](int64_t i, int64_t k) {
      column_put<T>(sum + i, column_get<T>(sum + i, k) + column_get<T>(row + i, k), k);
    });
  }
  for (int64_t c = 0; c < cols; ++c) {
    mean[c] = sum[c] / count;
    sum[c] = T(0);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = row_slice<St>(x + r * ld, cols, room);
    column_lanes<T>(cols, [&](int64_t i, int64_t k) {
      const auto d = column_get<T>(row + i, k) - column_get<T>(mean + i, k);
      column_put<T>(sum + i, column_get<T>(sum + i, k) + d * d, k);
    });
  }
  for (int64_t c = 0; c < cols; ++c) {
    rstd[c] = static_cast<T>(1 / __builtin_sqrt(static_cast<double>(sum[c] / count) + eps));
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = row_slice<St>(x + r * ld, cols, room);
    T* to = result;
    if constexpr (same) {
      to = out + r * ld_out;
    }
    column_lanes<T>(cols, [&](int64_t i, int64_t k) {
      const auto d = (column_get<T>(row + i, k) - column_get<T>(mean + i, k)) * column_get<T>(rstd + i, k);
      column_put<T>(to + i, d * column_get<T>(scale + i, k) + column_get<T>(shift + i, k), k);
    });
    if constexpr (!same) {
      narrow<St>(result, out + r * ld_out, cols);
    }
  }
}

template <class St>
static void norm_backward(
    const void* grad_in, const void* x_in, int64_t ld, const void* weight, const void* mean_in, const void* rstd_in,
    void* dx_out, void* dweight_out, void* dbias_out, int64_t rows, int64_t cols) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr bool same = sizeof(S) == sizeof(T);
  const S *grad = static_cast<const S*>(grad_in), *x = static_cast<const S*>(x_in);
  S* dx = static_cast<S*>(dx_out);
  const T *mean = static_cast<const T*>(mean_in), *rstd = static_cast<const T*>(rstd_in);
  T *dweight = static_cast<T*>(dweight_out), *dbias = static_cast<T*>(dbias_out);
  T x_room[kNormCols], g_room[kNormCols], result[kNormCols], scale[kNormCols];
  norm_vector<St>(weight, T(1), cols, scale);
  const T share = T(1) / static_cast<T>(rows > 0 ? rows : 1);
  for (int64_t c = 0; c < cols; ++c) {
    dweight[c] = dbias[c] = T(0);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T *row = row_slice<St>(x + r * ld, cols, x_room), *g = row_slice<St>(grad + r * ld, cols, g_room);
    column_lanes<T>(cols, [&](int64_t i, int64_t k) {
      const auto y = (column_get<T>(row + i, k) - column_get<T>(mean + i, k)) * column_get<T>(rstd + i, k);
      const auto v = column_get<T>(g + i, k);
      column_put<T>(dweight + i, column_get<T>(dweight + i, k) + v * y, k);
      column_put<T>(dbias + i, column_get<T>(dbias + i, k) + v, k);
    });
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T *row = row_slice<St>(x + r * ld, cols, x_room), *g = row_slice<St>(grad + r * ld, cols, g_room);
    T* to = result;
    if constexpr (same) {
      to = dx + r * ld;
    }
    column_lanes<T>(cols, [&](int64_t i, int64_t k) {
      const auto s = column_get<T>(rstd + i, k);
      const auto y = (column_get<T>(row + i, k) - column_get<T>(mean + i, k)) * s;
      const auto inner =
          column_get<T>(g + i, k) - (column_get<T>(dbias + i, k) + y * column_get<T>(dweight + i, k)) * share;
      column_put<T>(to + i, inner * s * column_get<T>(scale + i, k), k);
    });
    if constexpr (!same) {
      narrow<St>(result, dx + r * ld, cols);
    }
  }
}

template <class St>
static void norm_add_up(const void* parts_in, int64_t count, int64_t cols, void* out_in) {
  typedef typename St::T T;
  const T* parts = static_cast<const T*>(parts_in);
  auto* out = static_cast<typename St::S*>(out_in);
  for (int64_t c = 0; c < cols; c += kNormCols) {
    const int64_t n = cols - c < kNormCols ? cols - c : kNormCols;
    T sum[kNormCols] = {};
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t i = 0; i < n; ++i) {
        sum[i] += parts[b * cols + c + i];
      }
    }
    narrow<St>(sum, out + c, n);
  }
}
