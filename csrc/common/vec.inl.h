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

// a > b ? a : b, so NaN in b wins: the exact meaning of the x86 instruction, which compilers do not always find.
template <class T>
EDGEOPS_INLINE typename Lanes<T>::V vmax(typename Lanes<T>::V a, typename Lanes<T>::V b) {
#if EDGEOPS_VB == 64
  if constexpr (sizeof(T) == 4) {
    return (typename Lanes<T>::V)_mm512_max_ps((__m512)a, (__m512)b);
  }
#elif EDGEOPS_VB == 32
  if constexpr (sizeof(T) == 4) {
    return (typename Lanes<T>::V)_mm256_max_ps((__m256)a, (__m256)b);
  }
#endif
  return a > b ? a : b;
}

template <class T, bool kMax>
EDGEOPS_INLINE typename Lanes<T>::V vfold(typename Lanes<T>::V a, typename Lanes<T>::V b) {
  if constexpr (kMax) {
    return vmax<T>(a, b);
  } else {
    return a + b;
  }
}

// out[r] = maximum or sum over the lanes of v[r]; count is a multiple of 8. The order depends on the width alone.
template <class T, bool kMax>
EDGEOPS_INLINE void fold_lanes(const typename Lanes<T>::V* v, int count, T* out) {
#if EDGEOPS_VB == 32
  if constexpr (sizeof(T) == 4) {
    for (int r = 0; r < count; r += 8) {
      __m256 p[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256 a = (__m256)v[r + 2 * i], b = (__m256)v[r + 2 * i + 1];
        p[i] = (__m256)vfold<T, kMax>(
            (Lanes<float>::V)_mm256_shuffle_ps(a, b, 0x88), (Lanes<float>::V)_mm256_shuffle_ps(a, b, 0xDD));
      }
      __m256 h[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        h[i] = (__m256)vfold<T, kMax>(
            (Lanes<float>::V)_mm256_shuffle_ps(p[2 * i], p[2 * i + 1], 0x88),
            (Lanes<float>::V)_mm256_shuffle_ps(p[2 * i], p[2 * i + 1], 0xDD));
      }
      vstore<float>(
          out + r, vfold<T, kMax>(
                       (Lanes<float>::V)_mm256_permute2f128_ps(h[0], h[1], 0x20),
                       (Lanes<float>::V)_mm256_permute2f128_ps(h[0], h[1], 0x31)));
    }
    return;
  }
#endif
  for (int r = 0; r < count; ++r) {
    T lane[Lanes<T>::n];
    vstore<T>(lane, v[r]);
    for (int w = Lanes<T>::n / 2; w > 0; w /= 2) {
      for (int i = 0; i < w; ++i) {
        lane[i] = kMax ? (lane[i] > lane[i + w] ? lane[i] : lane[i + w]) : lane[i] + lane[i + w];
      }
    }
    out[r] = lane[0];
  }
}

// 2^x for x <= 127; below -126 the result is 0. The polynomial is the best of degree 6 on [-1/2, 1/2]: error 2e-9.
EDGEOPS_INLINE Lanes<float>::V vexp2(Lanes<float>::V x) {
  typedef Lanes<float>::V V;
  typedef Lanes<float>::I I;
  const V low = vset<float>(-127.0f);
  x = vmax<float>(low, x);                   // in this order NaN stays
  const V magic = vset<float>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
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

// log2(x) for positive normal x, absolute error under 1e-7.
EDGEOPS_INLINE Lanes<float>::V vlog2(Lanes<float>::V x) {
  typedef Lanes<float>::V V;
  typedef Lanes<float>::I I;
  I bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const I exponent = (bits - 0x3F3504F3) >> 23;  // the mantissa goes to [sqrt(1/2), sqrt(2))
  bits -= exponent << 23;
  V m;
  __builtin_memcpy(&m, &bits, sizeof(m));
  // log2(m) = 2/ln(2) * atanh(z), z = (m - 1) / (m + 1), |z| < 0.172
  const V z = (m - 1.0f) / (m + 1.0f);
  const V z2 = z * z;
  V y = vset<float>(0.43171770f);
  y = y * z2 + 0.57671519f;
  y = y * z2 + 0.96179884f;
  y = y * z2 + 2.88539008f;
  return y * z + __builtin_convertvector(exponent, V);
}

EDGEOPS_INLINE Lanes<double>::V vlog2(Lanes<double>::V x) {
  for (int i = 0; i < Lanes<double>::n; ++i) {
    x[i] = __builtin_log2(x[i]);
  }
  return x;
}

#if EDGEOPS_VB == 32
// dst[k * ld_dst + j] = rows[j * ld + k] for 8 x 8; rows beyond `last` are read as row `last`
EDGEOPS_INLINE void transpose8(const float* rows, int64_t ld, int64_t last, float* dst, int64_t ld_dst) {
  const float* r[8];
#pragma GCC unroll 8
  for (int64_t j = 0; j < 8; ++j) {
    r[j] = rows + (j < last ? j : last) * ld;
  }
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    a[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(r[j])), _mm_loadu_ps(r[j + 4]), 1);
    a[j + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(r[j] + 4)), _mm_loadu_ps(r[j + 4] + 4), 1);
  }
#pragma GCC unroll 2
  for (int h = 0; h < 8; h += 4) {
    b[h] = _mm256_unpacklo_ps(a[h], a[h + 1]);
    b[h + 1] = _mm256_unpackhi_ps(a[h], a[h + 1]);
    b[h + 2] = _mm256_unpacklo_ps(a[h + 2], a[h + 3]);
    b[h + 3] = _mm256_unpackhi_ps(a[h + 2], a[h + 3]);
    float* d = dst + h * ld_dst;
    _mm256_storeu_ps(d, _mm256_shuffle_ps(b[h], b[h + 2], 0x44));
    _mm256_storeu_ps(d + ld_dst, _mm256_shuffle_ps(b[h], b[h + 2], 0xEE));
    _mm256_storeu_ps(d + 2 * ld_dst, _mm256_shuffle_ps(b[h + 1], b[h + 3], 0x44));
    _mm256_storeu_ps(d + 3 * ld_dst, _mm256_shuffle_ps(b[h + 1], b[h + 3], 0xEE));
  }
}
#endif
