// SPDX-License-Identifier: Apache-2.0
// What the ops of sparse projectors check before they touch memory: every integer of every index, too.
#pragma once

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "../common/check.h"
#include "../common/output.h"
#include "subspace.h"

namespace edgeops::offload {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_matrix(const Tensor& x, const char* who, const char* name) {
  EDGEOPS_CHECK(x.dim() == 2, ValueError, who, std::string(name) + " must be a matrix", shape_of(x), "Reshape it.");
  EDGEOPS_CHECK(x.is_cpu(), ValueError, who, std::string(name) + " must be on the CPU", "another device", "Move it.");
}

// The columns of a projector's entries, [rows, r], each in [0, width).
inline std::vector<int32_t> read_index(
    const Tensor& index, int64_t rows, int64_t width, const char* who, const char* name) {
  require_tensor(index, who, name);
  const ScalarType type = index.scalar_type();
  EDGEOPS_CHECK(
      type == ScalarType::Short || type == ScalarType::Int, TypeError, who,
      std::string(name) + " must be int16 or int32", dtype_of(index), "Cast it with .int().");
  check_matrix(index, who, name);
  EDGEOPS_CHECK(
      index.size(0) == rows && index.size(1) > 0, ValueError, who,
      std::string(name) + " must have shape [" + std::to_string(rows) + ", r], r > 0", shape_of(index),
      "A projector has one row of entries for each row that it projects.");
  const Tensor whole = dense(index);
  const int64_t n = whole.numel();
  std::vector<int32_t> out(static_cast<size_t>(n));
  const auto take = [&](const auto* from) {
    for (int64_t i = 0; i < n; ++i) {
      const auto c = static_cast<int32_t>(from[i]);
      EDGEOPS_CHECK(
          c >= 0 && c < width, ValueError, who,
          std::string(name) + " must be columns in [0, " + std::to_string(width) + ")", std::to_string(c),
          "Build projectors with edgeops.offload.");
      out[static_cast<size_t>(i)] = c;
    }
  };
  if (type == ScalarType::Short) {
    take(static_cast<const int16_t*>(whole.const_data_ptr()));
  } else {
    take(static_cast<const int32_t*>(whole.const_data_ptr()));
  }
  return out;
}

// The values of a projector's entries, like its index, in the compute type of what it projects; dense.
inline Tensor read_value(const Tensor& value, const Tensor& index, Storage storage, const char* who, const char* name) {
  require_tensor(value, who, name);
  EDGEOPS_CHECK(
      value.scalar_type() == compute_type(storage), TypeError, who,
      std::string(name) + " must be " +
          (storage == Storage::f64 ? "float64 with float64" : "float32 with float32, float16 or bfloat16"),
      dtype_of(value), "Cast the projector with .to(dtype).");
  check_matrix(value, who, name);
  EDGEOPS_CHECK(
      value.size(0) == index.size(0) && value.size(1) == index.size(1), ValueError, who,
      std::string(name) + " must be like its index, " + shape_of(index), shape_of(value),
      "Build projectors with edgeops.offload.");
  return dense(value);
}

// How a kernel walks through the columns of a matrix: rows or columns must lie side by side, else a copy does.
inline Block block_of(const Tensor& x, std::vector<Tensor>& kept) {
  const bool by_row = x.size(1) <= 1 || x.stride(1) == 1, by_column = x.size(0) <= 1 || x.stride(0) == 1;
  kept.push_back(by_row || by_column ? x : dense(x));
  const Tensor& lying = kept.back();
  const bool side_by_side = by_row || !by_column;
  return {
      lying.const_data_ptr(), side_by_side ? lying.stride(0) : 1, side_by_side ? 1 : lying.stride(1), x.size(0), 0, 0};
}

struct ColumnPiece {
  int64_t first, count;
  double cost;
};

// Columns in pieces, each computed whole by one thread.
inline std::vector<ColumnPiece> column_pieces(int64_t columns, double cost_per_column) {
  std::vector<ColumnPiece> pieces;
  for (int64_t j = 0; j < columns; j += kColumns) {
    const int64_t count = std::min(kColumns, columns - j);
    pieces.push_back({j, count, 50 + cost_per_column * static_cast<double>(count)});
  }
  return pieces;
}

}  // namespace edgeops::offload
