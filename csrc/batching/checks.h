// SPDX-License-Identifier: Apache-2.0
// Checks of the row kernels: matrices with dense rows (views of tables) and lists of row numbers.
#pragma once

#include <string>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "../common/check.h"
#include "../common/output.h"
#include "../common/storage.h"
#include "linear.h"

namespace edgeops::batching {

using torch::stable::Tensor;

// A [rows, cols] matrix on the CPU whose rows are dense; -1 leaves a size open.
inline void check_matrix(
    const Tensor& x, torch::headeronly::ScalarType type, int64_t rows, int64_t cols, const char* who,
    const std::string& name) {
  require_tensor(x, who, name.c_str());
  EDGEOPS_CHECK(
      x.scalar_type() == type, TypeError, who, name + " must have dtype " + torch::headeronly::toString(type),
      dtype_of(x), "Cast it with .to(dtype).");
  EDGEOPS_CHECK(
      x.is_cpu(), ValueError, who, name + " must be on the CPU, as the other tensors", "one elsewhere",
      "Move it with .cpu().");
  const auto text = [](int64_t size) { return size < 0 ? std::string("any") : std::to_string(size); };
  EDGEOPS_CHECK(
      x.dim() == 2 && (rows < 0 || x.size(0) == rows) && (cols < 0 || x.size(1) == cols), ValueError, who,
      name + " must have shape (" + text(rows) + ", " + text(cols) + ")", shape_of(x),
      "Pass the segment that belongs to this batch.");
  EDGEOPS_CHECK(
      x.size(1) <= 1 || x.stride(1) == 1 || x.size(0) == 0, ValueError, who, name + " must have dense rows",
      "a last stride of " + std::to_string(x.stride(1)), "Call .contiguous() on it.");
}

// The same for a matrix that is written: its rows must not share memory.
inline void check_target(
    const Tensor& x, torch::headeronly::ScalarType type, int64_t rows, int64_t cols, const char* who,
    const std::string& name) {
  check_matrix(x, type, rows, cols, who, name);
  EDGEOPS_CHECK(
      x.size(0) <= 1 || x.size(1) == 0 || x.stride(0) >= x.size(1), ValueError, who,
      name + " must have rows that do not overlap", "a row stride of " + std::to_string(x.stride(0)),
      "Pass a view of a table, or .clone() it.");
}

// A list of m row numbers of `table`, each checked; nullptr stands for rows 0 to m in order, which an empty list means.
// What must outlive the pointer is put into `keep`.
inline const int32_t* check_rows(
    const Tensor& rows, const Tensor& table, int64_t m, const char* who, const std::string& name,
    std::vector<Tensor>& keep) {
  require_tensor(rows, who, name.c_str());
  const int64_t limit = table.size(0);
  EDGEOPS_CHECK(
      rows.scalar_type() == torch::headeronly::ScalarType::Int, TypeError, who, name + " must be int32", dtype_of(rows),
      "Cast it with .to(torch.int32).");
  EDGEOPS_CHECK(
      rows.dim() == 1 && rows.is_cpu() && (rows.numel() == m || rows.numel() == 0), ValueError, who,
      name + " must have shape (" + std::to_string(m) + ",) on the CPU, or (0,) for all rows in order", shape_of(rows),
      "Pass one row number for each row of the result.");
  if (rows.numel() == 0) {
    EDGEOPS_CHECK(
        limit == m || m == 0, ValueError, who,
        name + " may be empty only where its table has " + std::to_string(m) + " rows", std::to_string(limit) + " rows",
        "Pass the row numbers, or the segment of the table.");
    return nullptr;
  }
  if (!rows.is_contiguous()) {
    keep.push_back(dense(rows));
  }
  const auto* p = static_cast<const int32_t*>((rows.is_contiguous() ? rows : keep.back()).const_data_ptr());
  uint32_t largest = 0;  // negative numbers are large ones here
  for (int64_t i = 0; i < m; ++i) {
    largest = static_cast<uint32_t>(p[i]) > largest ? static_cast<uint32_t>(p[i]) : largest;
  }
  if (static_cast<int64_t>(largest) >= limit) {
    int64_t at = 0;
    while (p[at] >= 0 && p[at] < limit) {
      ++at;
    }
    fail(
        "ValueError", who, name + " must hold row numbers from 0 to " + std::to_string(limit - 1),
        std::to_string(p[at]) + " at position " + std::to_string(at), "Check which table the list belongs to.");
  }
  return p;
}

inline Operand operand_of(const Tensor& table, const int32_t* rows) {
  return {table.const_data_ptr(), table.stride(0), rows, table.size(1)};
}

}  // namespace edgeops::batching
