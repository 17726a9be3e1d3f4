// SPDX-License-Identifier: Apache-2.0
// Inner loops of products with a sparse projector. Included once per instruction set, after convert.inl.h.
//
// A block of columns is brought into the compute type with its columns side by side ([rows][W], in place where it
// already lies so), and then every entry of P is one broadcast times W neighbouring numbers: nothing is scattered, and
// sums run in the order of the entries, whatever else is computed beside them.

template <class T>
constexpr int64_t pane_width() {
  return 2 * Lanes<T>::n;
}

// dst[i * W + j] = x[i, first + j] for j < count (count <= W), 0 for the columns beyond.
template <class St>
static void fill_pane(const Block& x, int64_t first, int64_t count, typename St::T* dst) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr int64_t W = pane_width<T>();
  const S* src = static_cast<const S*>(x.data);
  if (x.lane == 1) {
    for (int64_t i = 0; i < x.rows; ++i) {
      widen<St>(src + i * x.step + first, dst + i * W, count);
      for (int64_t j = count; j < W; ++j) {
        dst[i * W + j] = T(0);
      }
    }
    return;
  }
  constexpr int64_t K = 64;
  alignas(64) T room[8 * K];
  for (int64_t j0 = 0; j0 < W; j0 += 8) {
    const int64_t lanes = count - j0 < 8 ? (count > j0 ? count - j0 : 0) : 8;
    for (int64_t i0 = 0; i0 < x.rows; i0 += K) {
      const int64_t k = x.rows - i0 < K ? x.rows - i0 : K;
      for (int64_t j = 0; j < 8; ++j) {
        if (j < lanes) {
          widen<St>(src + (first + j0 + j) * x.lane + i0, room + j * K, k);
        } else {
          for (int64_t i = 0; i < k; ++i) {
            room[j * K + i] = T(0);
          }
        }
      }
      T* to = dst + i0 * W + j0;
      int64_t i = 0;
#if EDGEOPS_VB == 32
      if constexpr (sizeof(T) == 4) {
        for (; i + 8 <= k; i += 8) {
          transpose8(room + i, K, 7, to + i * W, W);
        }
      }
#endif
      for (; i < k; ++i) {
        for (int64_t j = 0; j < 8 && j0 + j < W; ++j) {
          to[i * W + j] = room[j * K + i];
        }
      }
    }
  }
}

// Where the columns [first, first + count) of x lie side by side in the compute type: in place or in `pane`.
template <class St>
EDGEOPS_INLINE const typename St::T* pane_of(
    const Block& x, int64_t first, int64_t count, typename St::T* pane, int64_t& step) {
  typedef typename St::T T;
  constexpr int64_t W = pane_width<T>();
  if constexpr (sizeof(typename St::S) == sizeof(T)) {
    if (x.lane == 1 && count == W) {
      step = x.step;
      return static_cast<const T*>(x.data) + first;
    }
  }
  fill_pane<St>(x, first, count, pane);
  step = W;
  return pane;
}

// out[0, count) = the two vectors in the storage type
template <class St>
EDGEOPS_INLINE void store_pane(
    typename St::S* out, int64_t count, typename Lanes<typename St::T>::V a, typename Lanes<typename St::T>::V b) {
  typedef typename St::T T;
  constexpr int64_t L = Lanes<T>::n;
  if constexpr (sizeof(typename St::S) == sizeof(T)) {
    if (count == 2 * L) {
      vstore<T>(out, a);
      vstore<T>(out + L, b);
      return;
    }
  }
  alignas(64) T row[2 * L];
  vstore<T>(row, a);
  vstore<T>(row + L, b);
  narrow<St>(row, out, count);
}

template <class St>
static void project_block(
    const Block& x, const int64_t* starts, const void* entries_of_all, int64_t d, void* out, int64_t ld) {
  typedef typename St::S S;
  typedef typename St::T T;
  typedef typename Lanes<T>::V V;
  constexpr int64_t L = Lanes<T>::n, W = 2 * L;
  const auto* entries = static_cast<const Entry<T>*>(entries_of_all);
  T* pane = reinterpret_cast<T*>(scratch_of_thread(0, x.rows * W * static_cast<int64_t>(sizeof(T))));
  for (int64_t j = 0; j < x.count; j += W) {
    const int64_t count = x.count - j < W ? x.count - j : W;
    int64_t step;
    const T* from = pane_of<St>(x, x.first + j, count, pane, step);
    S* to = static_cast<S*>(out) + x.first + j;
    for (int64_t c = 0; c < d; ++c) {
      // four chains: rows are many where d is small, and one long sum would round worse
      V a[4], b[4];
      for (int u = 0; u < 4; ++u) {
        a[u] = b[u] = vset<T>(T(0));
      }
      int64_t e = starts[c];
      for (; e + 4 <= starts[c + 1]; e += 4) {
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) {
          const T* p = from + entries[e + u].row * step;
          const V v = vset<T>(entries[e + u].value);
          a[u] += v * vload<T>(p);
          b[u] += v * vload<T>(p + L);
        }
      }
      for (; e < starts[c + 1]; ++e) {
        const T* p = from + entries[e].row * step;
        const V v = vset<T>(entries[e].value);
        a[0] += v * vload<T>(p);
        b[0] += v * vload<T>(p + L);
      }
      store_pane<St>(to + c * ld, count, (a[0] + a[1]) + (a[2] + a[3]), (b[0] + b[1]) + (b[2] + b[3]));
    }
  }
}

template <class St>
static void expand_block(
    const Block& y, const int32_t* index, const void* value_of_all, int64_t m, int64_t r, void* out, int64_t ld) {
  typedef typename St::S S;
  typedef typename St::T T;
  typedef typename Lanes<T>::V V;
  constexpr int64_t L = Lanes<T>::n, W = 2 * L;
  const T* value = static_cast<const T*>(value_of_all);
  T* pane = reinterpret_cast<T*>(scratch_of_thread(0, y.rows * W * static_cast<int64_t>(sizeof(T))));
  for (int64_t j = 0; j < y.count; j += W) {
    const int64_t count = y.count - j < W ? y.count - j : W;
    int64_t step;
    const T* from = pane_of<St>(y, y.first + j, count, pane, step);
    S* to = static_cast<S*>(out) + y.first + j;
    for (int64_t i = 0; i < m; ++i) {
      V a = vset<T>(T(0)), b = a;
      for (int64_t k = i * r; k < (i + 1) * r; ++k) {
        const T* p = from + index[k] * step;
        const V v = vset<T>(value[k]);
        a += v * vload<T>(p);
        b += v * vload<T>(p + L);
      }
      store_pane<St>(to + i * ld, count, a, b);
    }
  }
}

template <class T>
static T dot(const T* x, const T* y, int64_t n) {
  typedef typename Lanes<T>::V V;
  constexpr int64_t L = Lanes<T>::n;
  V sum[8];
  for (auto& s : sum) {
    s = vset<T>(T(0));
  }
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    for (int64_t u = 0; u < 4; ++u) {
      sum[u] += vload<T>(x + i + u * L) * vload<T>(y + i + u * L);
    }
  }
  T out[8];
  fold_lanes<T, false>(sum, 8, out);
  T rest = T(0);
  for (; i < n; ++i) {
    rest += x[i] * y[i];
  }
  return ((out[0] + out[1]) + (out[2] + out[3])) + rest;
}

template <class St>
static void value_grad_rows(
    const void* x_of_all, const void* y_of_all, int64_t n, const int32_t* index, int64_t r, int64_t begin, int64_t end,
    void* out_of_all) {
  typedef typename St::S S;
  typedef typename St::T T;
  const S* x = static_cast<const S*>(x_of_all);
  const S* y = static_cast<const S*>(y_of_all);
  T* out = static_cast<T*>(out_of_all);
  T* room = reinterpret_cast<T*>(scratch_of_thread(0, 2 * n * static_cast<int64_t>(sizeof(T))));
  for (int64_t i = begin; i < end; ++i) {
    const T* row = row_slice<St>(x + i * n, n, room);
    for (int64_t k = i * r; k < (i + 1) * r; ++k) {
      out[k] = dot<T>(row, row_slice<St>(y + index[k] * n, n, room + n), n);
    }
  }
}
