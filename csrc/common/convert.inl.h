// SPDX-License-Identifier: Apache-2.0
// Rows of storage type to rows of compute type and back. Included once per instruction set, after vec.inl.h.

EDGEOPS_INLINE float bf16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  __builtin_memcpy(&x, &wide, sizeof(x));
  return x;
}

// Round to nearest even; NaN stays NaN.
EDGEOPS_INLINE uint16_t float_to_bf16(float x) {
  uint32_t wide;
  __builtin_memcpy(&wide, &x, sizeof(wide));
  const uint32_t rounded = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(x == x ? rounded : 0x7FC0);
}

// Storage types: the four of enum Storage. bf16 and f16 are held as their bits.
struct StoreF32 {
  typedef float S;
  typedef float T;
};
struct StoreF64 {
  typedef double S;
  typedef double T;
};
struct StoreF16 {
  typedef uint16_t S;
  typedef float T;
};
struct StoreBf16 {
  typedef uint16_t S;
  typedef float T;
};

template <class St>
static inline void widen(const typename St::S* src, typename St::T* dst, int64_t n);
template <class St>
static inline void narrow(const typename St::T* src, typename St::S* dst, int64_t n);

template <>
inline void widen<StoreF32>(const float* src, float* dst, int64_t n) {
  __builtin_memcpy(dst, src, n * sizeof(float));
}
template <>
inline void narrow<StoreF32>(const float* src, float* dst, int64_t n) {
  __builtin_memcpy(dst, src, n * sizeof(float));
}
template <>
inline void widen<StoreF64>(const double* src, double* dst, int64_t n) {
  __builtin_memcpy(dst, src, n * sizeof(double));
}
template <>
inline void narrow<StoreF64>(const double* src, double* dst, int64_t n) {
  __builtin_memcpy(dst, src, n * sizeof(double));
}
template <>
inline void widen<StoreBf16>(const uint16_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    dst[i] = bf16_to_float(src[i]);
  }
}
template <>
inline void narrow<StoreBf16>(const float* src, uint16_t* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    dst[i] = float_to_bf16(src[i]);
  }
}
template <>
inline void widen<StoreF16>(const uint16_t* src, float* dst, int64_t n) {
  int64_t i = 0;
#if EDGEOPS_F16C
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
  }
#endif
  for (; i < n; ++i) {
    dst[i] = torch::headeronly::detail::fp16_ieee_to_fp32_value(src[i]);
  }
}
template <>
inline void narrow<StoreF16>(const float* src, uint16_t* dst, int64_t n) {
  int64_t i = 0;
#if EDGEOPS_F16C
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(dst + i), _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < n; ++i) {
    dst[i] = torch::headeronly::detail::fp16_ieee_from_fp32_value(src[i]);
  }
}

// A slice of a row in compute type: in place where the types agree, else widened into `room`.
template <class St>
EDGEOPS_INLINE const typename St::T* row_slice(const typename St::S* src, int64_t n, typename St::T* room) {
  if constexpr (sizeof(typename St::S) == sizeof(typename St::T)) {
    return src;
  } else {
    widen<St>(src, room, n);
    return room;
  }
}
