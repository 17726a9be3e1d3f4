// SPDX-License-Identifier: Apache-2.0
// -log of the probability of decisions with given scores: binary cross entropy with logits, summed over the columns.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "program_batches.h"

namespace edgeops::batching {

using Taken = std::vector<const int32_t*>;  // by column: for every row 0 or 1

template <class S>
S* row_of(const View& v, int64_t i) {
  return reinterpret_cast<S*>(v.data) + (v.rows == nullptr ? i : v.rows[i]) * v.stride;
}

// Every row by itself: NaN stays in its row.
template <class S, class T>
void decide(const View& scores, const View& loss, const Taken& taken) {
  for (int64_t i = 0; i < scores.count; ++i) {
    const S* x = row_of<S>(scores, i);
    T sum = 0;
    for (int64_t k = 0; k < scores.width; ++k) {
      const T against = taken[k][i] != 0 ? -static_cast<T>(x[k]) : static_cast<T>(x[k]);
      sum += (against > 0 ? against : T(0)) + std::log1p(std::exp(-std::abs(against)));
    }
    *row_of<S>(loss, i) = static_cast<S>(sum);
  }
}

// dscores += the loss's gradients times (probability - taken).
template <class S, class T>
void decide_grad(const View& dscores, const View& scores, const View& dloss, const Taken& taken) {
  for (int64_t i = 0; i < scores.count; ++i) {
    const S* x = row_of<S>(scores, i);
    S* dx = row_of<S>(dscores, i);
    const T up = static_cast<T>(*row_of<S>(dloss, i));
    for (int64_t k = 0; k < scores.width; ++k) {
      const T sign = taken[k][i] != 0 ? T(-1) : T(1);
      dx[k] = static_cast<S>(static_cast<T>(dx[k]) + up * sign / (1 + std::exp(-sign * static_cast<T>(x[k]))));
    }
  }
}

// Calls run(S, T) with the stored and the computing type of rows.
template <class Run>
void by_type(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Float:
      return run(float{}, float{});
    case ScalarType::Double:
      return run(double{}, double{});
    case ScalarType::Half:
      return run(torch::headeronly::Half{}, float{});
    case ScalarType::BFloat16:
      return run(torch::headeronly::BFloat16{}, float{});
    default:
      broken("a dtype without kernels");
  }
}

}  // namespace edgeops::batching
