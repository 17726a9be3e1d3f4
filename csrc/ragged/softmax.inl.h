// SPDX-License-Identifier: Apache-2.0
// Inner loops of softmax over the rows of a segment. Included once per instruction set.
//
// Rows are read in order and whole, with the maximum and the sum of each column held beside. Where there are few
// columns several rows count as one long row, and its columns are folded at the end.
#include "columns.inl.h"

constexpr int64_t kSoftmaxMost = 256;  // columns held beside: the widest piece, or a row made of several

template <class T>
struct SoftmaxState {
  T top[kSoftmaxMost];
  T sum[kSoftmaxMost];
};

// The passes over one row of n columns.
template <class T>
EDGEOPS_INLINE void softmax_top(const T* x, T* top, int64_t n) {
  column_lanes<T>(n, [&](int64_t i, int64_t k) {
    column_put<T>(top + i, vmax<T>(column_get<T>(top + i, k), column_get<T>(x + i, k)), k);
  });
}

template <class T>
EDGEOPS_INLINE void softmax_exp(const T* x, const T* top, T* sum, T* out, int64_t n) {
  const T log2e = static_cast<T>(1.4426950408889634);
  column_lanes<T>(n, [&](int64_t i, int64_t k) {
    const auto e = vexp2((column_get<T>(x + i, k) - column_get<T>(top + i, k)) * log2e);
    column_put<T>(sum + i, column_get<T>(sum + i, k) + e, k);
    if (out != nullptr) {
      column_put<T>(out + i, e, k);
    }
  });
}

template <class T>
EDGEOPS_INLINE void softmax_scale(T* out, const T* factor, int64_t n) {
  column_lanes<T>(n, [&](int64_t i, int64_t k) {
    column_put<T>(out + i, column_get<T>(out + i, k) * column_get<T>(factor + i, k), k);
  });
}

template <class T>
EDGEOPS_INLINE void softmax_shift(const T* x, const T* top, const T* logs, T* out, int64_t n) {
  column_lanes<T>(n, [&](int64_t i, int64_t k) {
    const auto y = column_get<T>(x + i, k) - column_get<T>(top + i, k);
    column_put<T>(out + i, y - column_get<T>(logs + i, k), k);
  });
}

template <class T>
EDGEOPS_INLINE void softmax_dot(const T* grad, const T* out, T* sum, int64_t n, bool log) {
  column_lanes<T>(n, [&](int64_t i, int64_t k) {
    const auto g = column_get<T>(grad + i, k);
    column_put<T>(sum + i, column_get<T>(sum + i, k) + (log ? g : g * column_get<T>(out + i, k)), k);
  });
}

template <class T>
EDGEOPS_INLINE void softmax_grad(const T* grad, const T* out, const T* sum, T* dx, int64_t n, bool log) {
  const T log2e = static_cast<T>(1.4426950408889634);
  column_lanes<T>(n, [&](int64_t i, int64_t k) {
    const auto g = column_get<T>(grad + i, k), y = column_get<T>(out + i, k), s = column_get<T>(sum + i, k);
    column_put<T>(dx + i, log ? g - vexp2(y * log2e) * s : y * (g - s), k);
  });
}

// Columns that stand in one long row several times: the first `cols` values become the maximum or sum of all.
template <class T, bool kMax>
EDGEOPS_INLINE void softmax_fold(T* values, int64_t n, int64_t cols) {
  for (int64_t j = cols; j < n; j += cols) {
    for (int64_t c = 0; c < cols; ++c) {
      const T a = values[c], b = values[j + c];
      values[c] = kMax ? (b > a || b != b ? b : a) : a + b;
    }
  }
}

template <class T>
EDGEOPS_INLINE void softmax_repeat(T* values, int64_t n, int64_t cols) {
  for (int64_t j = cols; j < n; ++j) {
    values[j] = values[j - cols];
  }
}

// A segment as long rows: `n` columns each, `whole` of them, and `rest` elements of one more.
struct SoftmaxShape {
  int64_t n, whole, rest;
};

EDGEOPS_INLINE SoftmaxShape softmax_shape(int64_t rows, int64_t cols, bool flat) {
  if (!flat) {
    return {cols, rows, 0};
  }
  const int64_t n = cols * (cols == 1 ? 32 : cols <= 16 ? 16 : 8);  // whole vectors, not many more
  return {n, rows * cols / n, rows * cols % n};
}

template <class T>
static void softmax_forward(
    const T* x, int64_t ld, T* out, int64_t ld_out, int64_t rows, int64_t cols, bool flat, bool log) {
  const SoftmaxShape shape = softmax_shape(rows, cols, flat);
  const int64_t n = shape.n;
  if (flat) {
    ld = ld_out = n;
  }
  SoftmaxState<T> state;
  for (int64_t j = 0; j < n; ++j) {
    state.top[j] = -static_cast<T>(__builtin_inf());
    state.sum[j] = T(0);
  }
  const T* x_rest = x + shape.whole * ld;
  T* out_rest = out + shape.whole * ld_out;
  for (int64_t r = 0; r < shape.whole; ++r) {
    softmax_top<T>(x + r * ld, state.top, n);
  }
  softmax_top<T>(x_rest, state.top, shape.rest);
  if (flat) {
    softmax_fold<T, true>(state.top, n, cols);
    softmax_repeat<T>(state.top, n, cols);
  }
  for (int64_t r = 0; r < shape.whole; ++r) {
    softmax_exp<T>(x + r * ld, state.top, state.sum, log ? nullptr : out + r * ld_out, n);
  }
  softmax_exp<T>(x_rest, state.top, state.sum, log ? nullptr : out_rest, shape.rest);
  if (flat) {
    softmax_fold<T, false>(state.sum, n, cols);
  }
  for (int64_t j = 0; j < cols; ++j) {
    state.sum[j] = log ? static_cast<T>(__builtin_log(static_cast<double>(state.sum[j]))) : T(1) / state.sum[j];
  }
  softmax_repeat<T>(state.sum, n, cols);
  for (int64_t r = 0; r < shape.whole; ++r) {
    if (log) {
      softmax_shift<T>(x + r * ld, state.top, state.sum, out + r * ld_out, n);
    } else {
      softmax_scale<T>(out + r * ld_out, state.sum, n);
    }
  }
  if (log) {
    softmax_shift<T>(x_rest, state.top, state.sum, out_rest, shape.rest);
  } else {
    softmax_scale<T>(out_rest, state.sum, shape.rest);
  }
}

template <class T>
static void softmax_backward(
    const T* grad, const T* out, T* dx, int64_t ld, int64_t rows, int64_t cols, bool flat, bool log) {
  const SoftmaxShape shape = softmax_shape(rows, cols, flat);
  const int64_t n = shape.n;
  ld = flat ? n : ld;
  T sum[kSoftmaxMost] = {};
  const int64_t end = shape.whole * ld;
  for (int64_t at = 0; at < end; at += ld) {
    softmax_dot<T>(grad + at, out + at, sum, n, log);
  }
  softmax_dot<T>(grad + end, out + end, sum, shape.rest, log);
  if (flat) {
    softmax_fold<T, false>(sum, n, cols);
    softmax_repeat<T>(sum, n, cols);
  }
  for (int64_t at = 0; at < end; at += ld) {
    softmax_grad<T>(grad + at, out + at, sum, dx + at, n, log);
  }
  softmax_grad<T>(grad + end, out + end, sum, dx + end, shape.rest, log);
}

template <class St>
static void softmax_forward_rows(
    const void* x, int64_t ld, void* out, int64_t ld_out, int64_t rows, int64_t cols, bool flat, bool log) {
  typedef typename St::S S;
  typedef typename St::T T;
  const S* from = static_cast<const S*>(x);
  S* to = static_cast<S*>(out);
  if constexpr (sizeof(S) == sizeof(T)) {
    softmax_forward<T>(from, ld, to, ld_out, rows, cols, flat, log);
  } else {
    T* room = static_cast<T*>(__builtin_malloc(rows * cols * sizeof(T) + 64));
    for (int64_t r = 0; r < rows; ++r) {
      widen<St>(from + r * ld, room + r * cols, cols);
    }
    softmax_forward<T>(room, cols, room, cols, rows, cols, flat, log);
    for (int64_t r = 0; r < rows; ++r) {
      narrow<St>(room + r * cols, to + r * ld_out, cols);
    }
    __builtin_free(room);
  }
}

template <class St>
static void softmax_backward_rows(
    const void* grad, const void* out, void* dx, int64_t ld, int64_t rows, int64_t cols, bool flat, bool log) {
  typedef typename St::S S;
  typedef typename St::T T;
  const S *g = static_cast<const S*>(grad), *y = static_cast<const S*>(out);
  S* to = static_cast<S*>(dx);
  if constexpr (sizeof(S) == sizeof(T)) {
    softmax_backward<T>(g, y, to, ld, rows, cols, flat, log);
  } else {
    T* room = static_cast<T*>(__builtin_malloc(2 * rows * cols * sizeof(T) + 64));
    T* second = room + rows * cols;
    for (int64_t r = 0; r < rows; ++r) {
      widen<St>(g + r * ld, room + r * cols, cols);
      widen<St>(y + r * ld, second + r * cols, cols);
    }
    softmax_backward<T>(room, second, room, cols, rows, cols, flat, log);
    for (int64_t r = 0; r < rows; ++r) {
      narrow<St>(room + r * cols, to + r * ld, cols);
    }
    __builtin_free(room);
  }
}
