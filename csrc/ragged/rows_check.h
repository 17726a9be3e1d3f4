// SPDX-License-Identifier: Apache-2.0
// Argument checks of the row ops, forward and backward.
#pragma once

#include <string>

#include "../common/check.h"

namespace edgeops::ragged {

// Rows that make a task of about 20 us at one element a nanosecond.
inline int64_t row_grain(int64_t width) {
  return 20000 / (width + 1) + 1;
}

inline void check_rows(const torch::stable::Tensor& x, const char* who) {
  EDGEOPS_CHECK(
      x.dim() == 2, ValueError, who, "x must have shape [T, C]", shape_of(x), "Flatten it with flatten(0, -2).");
}

inline void check_vector(
    const torch::stable::Tensor& v, const torch::stable::Tensor& x, const char* who, const char* name) {
  require_tensor(v, who, name);
  EDGEOPS_CHECK(
      v.scalar_type() == x.scalar_type(), TypeError, who,
      std::string(name) + " must have the dtype of x, " + dtype_of(x), dtype_of(v), "Cast it with .to(x.dtype).");
  EDGEOPS_CHECK(
      v.dim() == 1 && v.size(0) == x.size(1) && v.is_cpu(), ValueError, who,
      std::string(name) + " must have shape [" + std::to_string(x.size(1)) + "], on x's device", shape_of(v),
      "Pass the vector of the layer that made x.");
}

// `y` has the shape, dtype and device of x.
inline void check_like(
    const torch::stable::Tensor& y, const torch::stable::Tensor& x, const char* who, const char* name) {
  require_tensor(y, who, name);
  EDGEOPS_CHECK(
      y.scalar_type() == x.scalar_type(), TypeError, who,
      std::string(name) + " must have the dtype of x, " + dtype_of(x), dtype_of(y), "Cast it with .to(x.dtype).");
  EDGEOPS_CHECK(
      y.dim() == 2 && y.size(0) == x.size(0) && y.size(1) == x.size(1) && y.is_cpu(), ValueError, who,
      std::string(name) + " must have the shape and device of x, " + shape_of(x), shape_of(y),
      "Add rows of the same batch.");
}

}  // namespace edgeops::ragged
