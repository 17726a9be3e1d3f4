// SPDX-License-Identifier: Apache-2.0
// What the row kernels of both directions share. Included once per instruction set, by rows.inl.h and rows_bwd.inl.h.

constexpr int64_t kSlice = 1024;  // elements of a row that are widened at a time

// Phi(-|x|) = bell * R(1 / (1 + |x| / 4)), bell = exp(-x^2 / 2); R is the best polynomial of degree 9, error 2e-9.
EDGEOPS_INLINE Lanes<float>::V normal_tail(Lanes<float>::V x, Lanes<float>::V* bell) {
  typedef Lanes<float>::V V;
  const V zero = {};
  const V size = vmax<float>(zero - x, x);
  const V t = 1.0f / (1.0f + 0.25f * size);
  V y = vset<float>(0.03766544501f);
  y = y * t - 0.2160984141f;
  y = y * t + 0.441190834f;
  y = y * t - 0.3941931375f;
  y = y * t + 0.3542767842f;
  y = y * t - 0.04674095865f;
  y = y * t + 0.1305610579f;
  y = y * t + 0.09291557774f;
  y = y * t + 0.1004560086f;
  y = y * t - 3.319707973e-5f;
  *bell = vexp2(x * x * -0.72134752f);  // log2(e) / 2
  return y * *bell;
}
