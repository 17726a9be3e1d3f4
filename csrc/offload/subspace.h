// SPDX-License-Identifier: Apache-2.0
// Products with a sparse projector P [m, d] of exactly r entries a row, as the ops (subspace.cpp) see them.
// LSP-Offload, AAAI 2025, definition 1.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::offload {

// One entry of a column of P: the row it stands in, and its value in the compute type.
template <class T>
struct Entry {
  int32_t row;
  T value;
};

// A block of columns [first, first + count) of a matrix [rows, N]. `step` is the distance between rows, `lane` that
// between columns, in elements: one of the two is 1.
struct Block {
  const void* data;
  int64_t step, lane, rows, first, count;
};

struct SubspaceKernels {
  // out[c, first + j] = sum over entries e of column c of value(e) * x[row(e), first + j]; `out` has rows of `ld`
  void (*project)(const Block& x, const int64_t* starts, const void* entries, int64_t d, void* out, int64_t ld);
  // out[i, first + j] = sum over k of value[i, k] * y[index[i, k], first + j]
  void (*expand)(const Block& y, const int32_t* index, const void* value, int64_t m, int64_t r, void* out, int64_t ld);
  // out[i, k] = sum over n of x[i, n] * y[index[i, k], n], for rows [begin, end); rows of x and y are dense
  void (*value_grad)(
      const void* x, const void* y, int64_t n, const int32_t* index, int64_t r, int64_t begin, int64_t end, void* out);
};

// W <- keep * W + alpha * P Delta Q^T, rows of W at a time.
struct ApplyCall {
  void* weight;
  int64_t ld, n, d_q;
  const void* delta;  // [d_p, d_q], dense, compute type
  const int32_t* p_index;
  const void* p_value;
  int64_t p_r;
  const int32_t* q_index;
  const void* q_value;
  int64_t q_r;
  double keep, alpha;
  bool stochastic;  // bfloat16: round up or down by chance, so that the mean is right
  int64_t seed;
};

struct UpdateKernels {
  void (*apply)(const ApplyCall& call, int64_t begin, int64_t end);
  // Adam's moments and direction: grad is replaced by m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
  void (*adam)(
      void* grad, void* exp_avg, void* exp_avg_sq, int64_t n, double beta1, double beta2, double eps, double scale1,
      double scale2);
};

// Columns that `project` and `expand` take at once, and rows that `apply` does: two vectors of the widest set.
constexpr int64_t kColumns = 64;
constexpr int64_t kApplyRows = 16;

const SubspaceKernels& subspace_kernels(Isa isa, Storage storage);
const UpdateKernels& update_kernels(Isa isa, Storage storage);

}  // namespace edgeops::offload
