// SPDX-License-Identifier: Apache-2.0
// Vectors of EDGEOPS_VB bytes as the compiler's own vector types. Included once per instruction set, inside its
// namespace; everything is written in lanes, never in 4, 8 or 16. No include guard on purpose.


template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(EDGEOPS_VB)));
  typedef int32_t I __attribute__((vector_size(EDGEOPS_VB)));
  static constexpr int n = EDGEOPS_VB / 4;
};

template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(EDGEOPS_VB)));
  typedef int64_t I __attribute__((vector_size(EDGEOPS_VB)));
  static constexpr int n = EDGEOPS_VB / 8;
};

template <class T>
EDGEOPS_INLINE typename Lanes<T>::V vload(const T* p) {
  typename Lanes<T>::V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
EDGEOPS_INLINE void vstore(T* p, typename Lanes<T>::V v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <class T>
EDGEOPS_INLINE typename Lanes<T>::V vset(T x) {
  return x - typename Lanes<T>::V{};
}

// NaN in b wins: a NaN score has to stay visible.
template <class V>
EDGEOPS_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}

template <class T>
EDGEOPS_INLINE T hmax(typename Lanes<T>::V v) {
  T best = v[0];
  for (int i = 1; i < Lanes<T>::n; ++i) {
    best = best > v[i] ? best : v[i];
  }
  return best;
}

// Halving order, fixed by the vector width alone.
template <class T>
EDGEOPS_INLINE T hsum(typename Lanes<T>::V v) {
  T lane[Lanes<T>::n];
  vstore<T>(lane, v);
  for (int w = Lanes<T>::n / 2; w > 0; w /= 2) {
    for (int i = 0; i < w; ++i) {
      lane[i] += lane[i + w];
    }
  }
  return lane[0];
}

// 2^x for x <= 127; below -126 the result is 0. The polynomial is the best of degree 6 on [-1/2, 1/2]: error 2e-9.
EDGEOPS_INLINE Lanes<float>::V vexp2(Lanes<float>::V x) {
  typedef Lanes<float>::V V;
  typedef Lanes<float>::I I;
  const V low = vset<float>(-127.0f);
  x = x < low ? low : x; // this form keeps NaN
  const V magic = vset<float>(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
  const V shifted = x + magic;
  const V f = x - (shifted - magic);
  V y = vset<float>(1.54614447e-4f);
  y = y * f + 1.34004282e-3f;
  y = y * f + 9.61805668e-3f;
  y = y * f + 5.55032723e-2f;
  y = y * f + 2.40226509e-1f;
  y = y * f + 6.93147207e-1f;
  y = y * f + 1.0f;
  I bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  const I exponent = (bits + (127 - 0x4B400000)) << 23;
  V scale;
  __builtin_memcpy(&scale, &exponent, sizeof(scale));
  return y * scale;
}

EDGEOPS_INLINE Lanes<double>::V vexp2(Lanes<double>::V x) {
  for (int i = 0; i < Lanes<double>::n; ++i) {
    x[i] = __builtin_exp2(x[i]);
  }
  return x;
}
