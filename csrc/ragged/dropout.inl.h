// SPDX-License-Identifier: Apache-2.0
// Dropout of attention weights by counter: a weight's fate follows from seed, sequence, head, query and key alone, so
// forward, backward and every device agree without a stored mask. Included once per instruction set.

#include "../common/mix32.inl.h"

// The counter of one row of weights.
EDGEOPS_INLINE uint32_t dropout_row(int64_t seed, int64_t b, int64_t h, int64_t i) {
  uint32_t r = mix32(static_cast<uint32_t>(seed) + 0x9E3779B9u * static_cast<uint32_t>(b));
  r = mix32(r ^ static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32) ^ (0x85EBCA6Bu * static_cast<uint32_t>(h)));
  return mix32(r + 0xC2B2AE35u * static_cast<uint32_t>(i));
}

// s[j] = 0 or s[j] * kept for keys j in [from, to); t0 is the position of key 0 in its sequence.
template <class T>
EDGEOPS_INLINE void dropout_weights(
    const DropoutCall& d, uint32_t row, int64_t t0, int64_t from, int64_t to, T* __restrict s) {
  typedef uint32_t U __attribute__((vector_size(EDGEOPS_VB)));
  constexpr int n = EDGEOPS_VB / 4;
  const T kept = static_cast<T>(d.kept);
  U step;
  for (int i = 0; i < n; ++i) {
    step[i] = static_cast<uint32_t>(i);
  }
  int64_t j = from;
  for (; j < to; j += n) {
    const U x = mix32<U>(row ^ (0x27D4EB2Fu * (step + static_cast<uint32_t>(t0 + j))));
    const int64_t count = to - j < n ? to - j : n;
    for (int64_t i = 0; i < count; ++i) {
      s[j + i] = x[i] >= d.threshold ? s[j + i] * kept : T(0);
    }
  }
}
