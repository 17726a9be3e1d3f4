// SPDX-License-Identifier: Apache-2.0
// 32 bits that look random, of a 32-bit counter: a bijection (lowbias32's shifts and factors), of a number or of a
// vector of them. Triton kernels and the Python twins compute the same. Included once per instruction set.

template <class X>
EDGEOPS_INLINE X mix32(X x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}
