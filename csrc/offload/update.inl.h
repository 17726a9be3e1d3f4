// SPDX-License-Identifier: Apache-2.0
// Inner loops of the update: Adam in the subspace, and its direction added to the weight. Included once per instruction
// set, after convert.inl.h.

#include "../common/mix32.inl.h"

// Random bits follow from seed, row and column alone, so every device and any number of threads rounds alike.
EDGEOPS_INLINE uint32_t counter_of_row(int64_t seed, int64_t row) {
  const uint32_t low = mix32(static_cast<uint32_t>(seed) + 0x9E3779B9u * static_cast<uint32_t>(row));
  return mix32(low ^ static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
}

// x rounded to bfloat16, up with the probability of its distance from below; what is not finite stays as it is.
EDGEOPS_INLINE uint16_t round_by_chance(float x, uint32_t random) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
  return finite ? static_cast<uint16_t>((bits + (random & 0xFFFFu)) >> 16) : float_to_bf16(x);
}

template <class St>
EDGEOPS_INLINE void add_to_row(const ApplyCall& call, int64_t i, int64_t j0, int64_t count, const typename St::T* add) {
  typedef typename St::S S;
  typedef typename St::T T;
  S* w = static_cast<S*>(call.weight) + i * call.ld + j0;
  const T keep = static_cast<T>(call.keep), alpha = static_cast<T>(call.alpha);
  if constexpr (sizeof(S) == sizeof(T)) {
    for (int64_t j = 0; j < count; ++j) {
      w[j] = keep * w[j] + alpha * add[j];
    }
  } else {
    alignas(64) T row[64];
    widen<St>(w, row, count);
    for (int64_t j = 0; j < count; ++j) {
      row[j] = keep * row[j] + alpha * add[j];
    }
    if (call.stochastic) {
      const uint32_t counter = counter_of_row(call.seed, i);
      for (int64_t j = 0; j < count; ++j) {
        w[j] = round_by_chance(row[j], mix32(counter ^ (0x27D4EB2Fu * static_cast<uint32_t>(j0 + j))));
      }
    } else {
      narrow<St>(row, w, count);
    }
  }
}

// Rows [begin, end) of W, kApplyRows at most: their rows of P Delta first, side by side, then columns through Q.
template <class St>
static void apply_rows(const ApplyCall& call, int64_t begin, int64_t end) {
  typedef typename St::T T;
  typedef typename Lanes<T>::V V;
  constexpr int64_t R = kApplyRows, L = Lanes<T>::n < R ? Lanes<T>::n : R, J = 64;
  const auto* delta = static_cast<const T*>(call.delta);
  const auto* p_value = static_cast<const T*>(call.p_value);
  const auto* q_value = static_cast<const T*>(call.q_value);
  const int64_t rows = end - begin;
  T* side = reinterpret_cast<T*>(scratch_of_thread(0, (call.d_q * R + call.d_q) * static_cast<int64_t>(sizeof(T))));
  T* line = side + call.d_q * R;
  for (int64_t i = 0; i < R; ++i) {
    for (int64_t c = 0; c < call.d_q; ++c) {
      line[c] = T(0);
    }
    for (int64_t k = (begin + i) * call.p_r; i < rows && k < (begin + i + 1) * call.p_r; ++k) {
      const T v = p_value[k];
      const T* from = delta + call.p_index[k] * call.d_q;
      for (int64_t c = 0; c < call.d_q; ++c) {
        line[c] += v * from[c];
      }
    }
    for (int64_t c = 0; c < call.d_q; ++c) {
      side[c * R + i] = line[c];
    }
  }
  alignas(64) T tile[J * R];
  alignas(64) T turned[R * J];
  for (int64_t j0 = 0; j0 < call.n; j0 += J) {
    const int64_t count = call.n - j0 < J ? call.n - j0 : J;
    for (int64_t j = 0; j < count; ++j) {
      V sum[R / L];
      for (auto& s : sum) {
        s = V{};
      }
      for (int64_t k = (j0 + j) * call.q_r; k < (j0 + j + 1) * call.q_r; ++k) {
        const V v = vset<T>(q_value[k]);
        const T* from = side + call.q_index[k] * R;
        for (int64_t u = 0; u < R / L; ++u) {
          sum[u] += v * vload<T>(from + u * L);
        }
      }
      for (int64_t u = 0; u < R / L; ++u) {
        vstore<T>(tile + j * R + u * L, sum[u]);
      }
    }
#if EDGEOPS_VB == 32
    if constexpr (sizeof(T) == 4) {
      for (int64_t j = 0; j < count; j += 8) {
        for (int64_t i = 0; i < R; i += 8) {
          transpose8(tile + j * R + i, R, 7, turned + i * J + j, J);
        }
      }
    } else
#endif
    {
      for (int64_t i = 0; i < R; ++i) {
        for (int64_t j = 0; j < count; ++j) {
          turned[i * J + j] = tile[j * R + i];
        }
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      add_to_row<St>(call, begin + i, j0, count, turned + i * J);
    }
  }
}

EDGEOPS_INLINE Lanes<float>::V square_root(Lanes<float>::V x) {
#if EDGEOPS_VB == 64
  return (Lanes<float>::V)_mm512_sqrt_ps((__m512)x);
#elif EDGEOPS_VB == 32
  return (Lanes<float>::V)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < Lanes<float>::n; ++i) {
    x[i] = __builtin_sqrtf(x[i]);
  }
  return x;
#endif
}

EDGEOPS_INLINE Lanes<double>::V square_root(Lanes<double>::V x) {
  for (int i = 0; i < Lanes<double>::n; ++i) {
    x[i] = __builtin_sqrt(x[i]);
  }
  return x;
}

template <class T>
struct AdamStep {
  typedef typename Lanes<T>::V V;
  V rest1, rest2, eps, scale1, scale2;
  // each sum has one product, so that there is one way only to fuse it: the same bits wherever this is inlined
  EDGEOPS_INLINE_MEMBER V operator()(V g, V& m, V& v) const {
    m = m + rest1 * (g - m);
    v = v + rest2 * (g * g - v);
    return (m * scale1) / (square_root(v * scale2) + eps);
  }
};

// Vectors throughout, the rest by way of one padded vector: an element's bits do not depend on where it stands.
template <class St>
static void adam_span(
    void* grad_of_all, void* exp_avg, void* exp_avg_sq, int64_t n, double beta1, double beta2, double eps,
    double scale1, double scale2) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr int64_t L = Lanes<T>::n;
  S* grad = static_cast<S*>(grad_of_all);
  T* m = static_cast<T*>(exp_avg);
  T* v = static_cast<T*>(exp_avg_sq);
  const AdamStep<T> step{
      vset<T>(T(1 - beta1)), vset<T>(T(1 - beta2)), vset<T>(T(eps)), vset<T>(T(scale1)), vset<T>(T(scale2))};
  alignas(64) T room[3 * L];
  for (int64_t i = 0; i < n; i += L) {
    const int64_t count = n - i < L ? n - i : L;
    const bool whole = count == L;
    T *pm = m + i, *pv = v + i, *pg = room;
    if (!whole) {
      for (int64_t j = 0; j < L; ++j) {
        room[j] = room[L + j] = room[2 * L + j] = T(0);
      }
      __builtin_memcpy(room + L, pm, static_cast<size_t>(count) * sizeof(T));
      __builtin_memcpy(room + 2 * L, pv, static_cast<size_t>(count) * sizeof(T));
      pm = room + L;
      pv = room + 2 * L;
    }
    if constexpr (sizeof(S) == sizeof(T)) {
      if (whole) {
        pg = grad + i;
      } else {
        widen<St>(grad + i, room, count);
      }
    } else {
      widen<St>(grad + i, room, count);
    }
    auto a = vload<T>(pm), b = vload<T>(pv);
    const auto delta = step(vload<T>(pg), a, b);
    vstore<T>(pm, a);
    vstore<T>(pv, b);
    vstore<T>(pg, delta);
    if (!whole) {
      __builtin_memcpy(m + i, room + L, static_cast<size_t>(count) * sizeof(T));
      __builtin_memcpy(v + i, room + 2 * L, static_cast<size_t>(count) * sizeof(T));
    }
    if (!whole || sizeof(S) != sizeof(T)) {
      narrow<St>(room, grad + i, count);
    }
  }
}
