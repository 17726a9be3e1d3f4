// SPDX-License-Identifier: Apache-2.0
// STRSAGA (NeurIPS 2018) for L2-regularised logistic regression, as its op (strsaga.cpp) sees it: SAGA over a set of
// samples that grows.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::drift {

// One learner's turn: `count` steps on the points named by `order`. Points [start, end) have been visited before; a
// step on point `end` is its first visit, and takes it in.
struct Turn {
  const void* x;  // [points, d], rows dense
  const void* y;  // [points], -1 or +1
  int64_t d;
  void* w;      // [d]
  void* sum;    // [d]: sum over visited points of alpha[i] * x[i]
  void* alpha;  // [points]: the derivative of the loss at the last visit
  const int32_t* order;
  int64_t count, start, end;
  double eta, mu;
};

struct StrsagaKernels {
  void (*run)(const Turn& turn);
};

// float32 and float64 only
const StrsagaKernels& strsaga_kernels(Isa isa, Storage storage);

}  // namespace edgeops::drift
