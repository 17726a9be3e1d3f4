// SPDX-License-Identifier: Apache-2.0
// Inner loops of cells and of sums of rows. Included once per instruction set, inside its namespace.
//
// Every row is computed by itself, every element from its own column: results depend on neither the batch nor threads.
// Forward writes activated gates in place of the gates, which is what backward reads.

constexpr int kSpill = 16;  // at least a vector of float

// 1 / (1 + e^-x), absolute error under 2e-7 in float32; in float64 a few units of the last place.
EDGEOPS_INLINE Lanes<float>::V vsigmoid(Lanes<float>::V x) {
  typedef Lanes<float>::V V;
  const V most = vset<float>(126.0f);
  V t = x * -1.44269504f;
  t = most < t ? most : t;  // in this order NaN stays
  return 1.0f / (1.0f + vexp2(t));
}

EDGEOPS_INLINE Lanes<double>::V vsigmoid(Lanes<double>::V x) {
  for (int i = 0; i < Lanes<double>::n; ++i) {
    x[i] = 1.0 / (1.0 + __builtin_exp(-x[i]));
  }
  return x;
}

// tanh, relative error under 3e-7 in float32: below 0.7 an odd polynomial, the best one of its degree in the relative
// error (1.5e-8), above 1 - 2 / (1 + e^(2 |x|)).
EDGEOPS_INLINE Lanes<float>::V vtanh(Lanes<float>::V x) {
  typedef Lanes<float>::V V;
  const V most = vset<float>(126.0f), zero = {};
  const V size = x < zero ? -x : x, z = x * x;
  V y = vset<float>(-5.138661712408066e-03f);
  y = y * z + 2.0091969519853592e-02f;
  y = y * z + -5.355885997414589e-02f;
  y = y * z + 1.332911103963852e-01f;
  y = y * z + -3.333319127559662e-01f;
  const V small = x + x * z * y;
  V t = size * 2.88539008f;
  t = most < t ? most : t;
  const V large = 1.0f - 2.0f / (1.0f + vexp2(t));
  const V signed_large = x < zero ? -large : large;
  return size < vset<float>(0.7f) ? small : signed_large;
}

EDGEOPS_INLINE Lanes<double>::V vtanh(Lanes<double>::V x) {
  for (int i = 0; i < Lanes<double>::n; ++i) {
    x[i] = __builtin_tanh(x[i]);
  }
  return x;
}

// `count` elements, no more than a vector; the lanes behind them are 0.
template <class St, bool kWhole>
EDGEOPS_INLINE typename Lanes<typename St::T>::V take(const typename St::S* p, int64_t count) {
  typedef typename St::T T;
  if constexpr (kWhole && sizeof(typename St::S) == sizeof(T)) {
    return vload<T>(p);
  } else {
    T room[kSpill] = {};
    widen<St>(p, room, kWhole ? Lanes<T>::n : count);
    return vload<T>(room);
  }
}

template <class St, bool kWhole>
EDGEOPS_INLINE void give(typename St::S* p, typename Lanes<typename St::T>::V v, int64_t count) {
  typedef typename St::T T;
  if constexpr (kWhole && sizeof(typename St::S) == sizeof(T)) {
    vstore<T>(p, v);
  } else {
    T room[kSpill];
    vstore<T>(room, v);
    narrow<St>(room, p, kWhole ? Lanes<T>::n : count);
  }
}

// What a cell's body sees of one row: argument `a`, part `k` of it, at the columns of the vector.
template <class St, int N, bool kWhole>
struct At {
  typename St::S* const* rows;
  int64_t h, j, count;
  EDGEOPS_INLINE_MEMBER typename Lanes<typename St::T>::V get(int a, int k = 0) const {
    return take<St, kWhole>(rows[a] + k * h + j, count);
  }
  EDGEOPS_INLINE_MEMBER void put(int a, int k, typename Lanes<typename St::T>::V v) const {
    give<St, kWhole>(rows[a] + k * h + j, v, count);
  }
};

// Calls Body::at for every vector of columns of every row; the cell has N arguments.
template <class St, int N, class Body>
EDGEOPS_INLINE void each_vector(const Place* places, int64_t h, int64_t begin, int64_t end) {
  typedef typename St::S S;
  constexpr int n = Lanes<typename St::T>::n;
  for (int64_t r = begin; r < end; ++r) {
    S* rows[N];
    for (int a = 0; a < N; ++a) {
      const int64_t row = places[a].rows == nullptr ? places[a].first + r : places[a].rows[r];
      rows[a] = static_cast<S*>(places[a].data) + row * places[a].stride;
    }
    int64_t j = 0;
    for (; j + n <= h; j += n) {
      Body::at(At<St, N, true>{rows, h, j, n});
    }
    if (j < h) {
      Body::at(At<St, N, false>{rows, h, j, h - j});
    }
  }
}

#define EDGEOPS_CELL(name, N)                                                    \
  struct name##_body {                                                           \
    template <class X>                                                           \
    EDGEOPS_INLINE_MEMBER static void at(const X& x);                            \
  };                                                                             \
  template <class St>                                                            \
  static void name(const Place* places, int64_t h, int64_t begin, int64_t end) { \
    each_vector<St, N, name##_body>(places, h, begin, end);                      \
  }                                                                              \
  template <class X>                                                             \
  EDGEOPS_INLINE_MEMBER void name##_body::at(const X& x)

// gates (i, f, g, o), c | h, c
EDGEOPS_CELL(lstm_fwd, 4) {
  const auto i = vsigmoid(x.get(0, 0)), f = vsigmoid(x.get(0, 1)), g = vtanh(x.get(0, 2)), o = vsigmoid(x.get(0, 3));
  const auto c = f * x.get(1) + i * g;
  x.put(0, 0, i);
  x.put(0, 1, f);
  x.put(0, 2, g);
  x.put(0, 3, o);
  x.put(3, 0, c);
  x.put(2, 0, o * vtanh(c));
}

// gates, c, c_out, dh, dc | dgates, dc_in
EDGEOPS_CELL(lstm_bwd, 7) {
  const auto i = x.get(0, 0), f = x.get(0, 1), g = x.get(0, 2), o = x.get(0, 3);
  const auto t = vtanh(x.get(2)), dh = x.get(3), c = x.get(1);
  const auto dc = x.get(4) + dh * o * (1 - t * t);
  x.put(5, 0, dc * g * i * (1 - i));
  x.put(5, 1, dc * c * f * (1 - f));
  x.put(5, 2, dc * i * (1 - g * g));
  x.put(5, 3, dh * t * o * (1 - o));
  x.put(6, 0, dc * f);
}

// gates (i, o, u, f1, f2), c1, c2 | h, c
EDGEOPS_CELL(treelstm_fwd, 5) {
  const auto i = vsigmoid(x.get(0, 0)), o = vsigmoid(x.get(0, 1)), u = vtanh(x.get(0, 2));
  const auto f1 = vsigmoid(x.get(0, 3)), f2 = vsigmoid(x.get(0, 4));
  const auto c = i * u + f1 * x.get(1) + f2 * x.get(2);
  x.put(0, 0, i);
  x.put(0, 1, o);
  x.put(0, 2, u);
  x.put(0, 3, f1);
  x.put(0, 4, f2);
  x.put(4, 0, c);
  x.put(3, 0, o * vtanh(c));
}

// gates, c1, c2, c_out, dh, dc | dgates, dc1, dc2
EDGEOPS_CELL(treelstm_bwd, 9) {
  const auto i = x.get(0, 0), o = x.get(0, 1), u = x.get(0, 2), f1 = x.get(0, 3), f2 = x.get(0, 4);
  const auto c1 = x.get(1), c2 = x.get(2), t = vtanh(x.get(3)), dh = x.get(4);
  const auto dc = x.get(5) + dh * o * (1 - t * t);
  x.put(6, 0, dc * u * i * (1 - i));
  x.put(6, 1, dh * t * o * (1 - o));
  x.put(6, 2, dc * i * (1 - u * u));
  x.put(6, 3, dc * c1 * f1 * (1 - f1));
  x.put(6, 4, dc * c2 * f2 * (1 - f2));
  x.put(7, 0, dc * f1);
  x.put(8, 0, dc * f2);
}

// gates (i, o, u) | h, c
EDGEOPS_CELL(leaf_fwd, 3) {
  const auto i = vsigmoid(x.get(0, 0)), o = vsigmoid(x.get(0, 1)), u = vtanh(x.get(0, 2));
  const auto c = i * u;
  x.put(0, 0, i);
  x.put(0, 1, o);
  x.put(0, 2, u);
  x.put(2, 0, c);
  x.put(1, 0, o * vtanh(c));
}

// gates, c_out, dh, dc | dgates
EDGEOPS_CELL(leaf_bwd, 5) {
  const auto i = x.get(0, 0), o = x.get(0, 1), u = x.get(0, 2), t = vtanh(x.get(1)), dh = x.get(2);
  const auto dc = x.get(3) + dh * o * (1 - t * t);
  x.put(4, 0, dc * u * i * (1 - i));
  x.put(4, 1, dh * t * o * (1 - o));
  x.put(4, 2, dc * i * (1 - u * u));
}

// x_gates (r, z, n), h_gates (r, z, n), h | h_out
EDGEOPS_CELL(gru_fwd, 4) {
  const auto r = vsigmoid(x.get(0, 0) + x.get(1, 0)), z = vsigmoid(x.get(0, 1) + x.get(1, 1));
  const auto n = vtanh(x.get(0, 2) + r * x.get(1, 2));
  x.put(0, 0, r);
  x.put(0, 1, z);
  x.put(0, 2, n);
  x.put(3, 0, (1 - z) * n + z * x.get(2));
}

// x_gates, h_gates, h, dh | dx_gates, dh_gates, dh_in
EDGEOPS_CELL(gru_bwd, 7) {
  const auto r = x.get(0, 0), z = x.get(0, 1), n = x.get(0, 2), hn = x.get(1, 2), h = x.get(2), dh = x.get(3);
  const auto dn = dh * (1 - z) * (1 - n * n), dz = dh * (h - n) * z * (1 - z), dr = dn * hn * r * (1 - r);
  x.put(4, 0, dr);
  x.put(4, 1, dz);
  x.put(4, 2, dn);
  x.put(5, 0, dr);
  x.put(5, 1, dz);
  x.put(5, 2, dn * r);
  x.put(6, 0, dh * z);
}

// gates (r1, r2, z1, z2), h1, h2 | first and second half of reset
EDGEOPS_CELL(reset_fwd, 5) {
  const auto r1 = vsigmoid(x.get(0, 0)), r2 = vsigmoid(x.get(0, 1));
  const auto z1 = vsigmoid(x.get(0, 2)), z2 = vsigmoid(x.get(0, 3));
  x.put(0, 0, r1);
  x.put(0, 1, r2);
  x.put(0, 2, z1);
  x.put(0, 3, z2);
  x.put(3, 0, r1 * x.get(1));
  x.put(4, 0, r2 * x.get(2));
}

// gates, h1, h2, halves of dreset | dgates (r1 and r2 of them), dh1 += , dh2 +=
EDGEOPS_CELL(reset_bwd, 8) {
  const auto r1 = x.get(0, 0), r2 = x.get(0, 1), d1 = x.get(3), d2 = x.get(4);
  x.put(5, 0, d1 * x.get(1) * r1 * (1 - r1));
  x.put(5, 1, d2 * x.get(2) * r2 * (1 - r2));
  x.put(6, 0, x.get(6) + d1 * r1);
  x.put(7, 0, x.get(7) + d2 * r2);
}

// halves of cand, gates, h1, h2 | h
EDGEOPS_CELL(treegru_fwd, 6) {
  const auto c1 = vtanh(x.get(0)), c2 = vtanh(x.get(1)), z1 = x.get(2, 2), z2 = x.get(2, 3);
  x.put(0, 0, c1);
  x.put(1, 0, c2);
  x.put(5, 0, ((z1 * x.get(3) + (1 - z1) * c1) + (z2 * x.get(4) + (1 - z2) * c2)) / 2);
}

// halves of cand, gates, h1, h2, dh | halves of dcand, dgates (z1 and z2 of them), dh1, dh2
EDGEOPS_CELL(treegru_bwd, 11) {
  const auto c1 = x.get(0), c2 = x.get(1), z1 = x.get(2, 2), z2 = x.get(2, 3), dh = x.get(5) / 2;
  x.put(6, 0, dh * (1 - z1) * (1 - c1 * c1));
  x.put(7, 0, dh * (1 - z2) * (1 - c2 * c2));
  x.put(8, 2, dh * (x.get(3) - c1) * z1 * (1 - z1));
  x.put(8, 3, dh * (x.get(4) - c2) * z2 * (1 - z2));
  x.put(9, 0, dh * z1);
  x.put(10, 0, dh * z2);
}

// Activations in place, and gradients through them: y, dy | dx.
EDGEOPS_CELL(tanh_fwd, 1) {
  x.put(0, 0, vtanh(x.get(0)));
}

EDGEOPS_CELL(tanh_bwd, 3) {
  const auto y = x.get(0);
  x.put(2, 0, x.get(1) * (1 - y * y));
}

EDGEOPS_CELL(sigmoid_fwd, 1) {
  x.put(0, 0, vsigmoid(x.get(0)));
}

EDGEOPS_CELL(sigmoid_bwd, 3) {
  const auto y = x.get(0);
  x.put(2, 0, x.get(1) * y * (1 - y));
}

EDGEOPS_CELL(relu_fwd, 1) {
  const auto y = x.get(0);
  const decltype(y + y) zero = {};
  x.put(0, 0, y < zero ? zero : y);  // in this order NaN stays
}

EDGEOPS_CELL(relu_bwd, 3) {
  const auto y = x.get(0), dy = x.get(1);
  const decltype(dy - dy) zero = {};
  x.put(2, 0, y <= zero ? zero : dy);
}

#undef EDGEOPS_CELL

#include "cross_entropy.inl.h"

constexpr int64_t kAhead = 8;  // summands from now that are fetched

// Eight vectors of columns at a time stay in registers while the rows go by, one addition after the other.
template <class St, int kVectors, bool kWhole>
EDGEOPS_INLINE void sum_columns(const RowsSum& g, int64_t i, int64_t j, int64_t count) {
  typedef typename St::S S;
  constexpr int n = Lanes<typename St::T>::n;
  typename Lanes<typename St::T>::V acc[kVectors] = {};
  S* out = static_cast<S*>(g.out) + i * g.out_row + j;
  for (int v = 0; g.add && v < kVectors; ++v) {
    acc[v] = take<St, kWhole>(out + v * n, count);
  }
  for (int64_t at = g.starts[i]; at < g.starts[i + 1]; ++at) {
    const S* src = static_cast<const S*>(g.src) + g.index[at] * g.src_row + j;
    if (j == 0 && at + kAhead < g.total) {  // rows of other lists lie anywhere
      const char* later =
          reinterpret_cast<const char*>(static_cast<const S*>(g.src) + g.index[at + kAhead] * g.src_row);
#pragma GCC unroll 4
      for (int line = 0; line < 4; ++line) {
        __builtin_prefetch(later + 64 * line);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      acc[v] += take<St, kWhole>(src + v * n, count);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    give<St, kWhole>(out + v * n, acc[v], count);
  }
}

template <class St>
static void rows_sum(const RowsSum& g, int64_t begin, int64_t end) {
  constexpr int n = Lanes<typename St::T>::n;
  for (int64_t i = begin; i < end; ++i) {
    int64_t j = 0;
    for (; j + 8 * n <= g.width; j += 8 * n) {
      sum_columns<St, 8, true>(g, i, j, n);
    }
    for (; j + n <= g.width; j += n) {
      sum_columns<St, 1, true>(g, i, j, n);
    }
    if (j < g.width) {
      sum_columns<St, 1, false>(g, i, j, g.width - j);
    }
  }
}
