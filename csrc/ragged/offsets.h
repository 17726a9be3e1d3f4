// SPDX-License-Identifier: Apache-2.0
// Reading and checking offsets: the one place where ragged ops learn where sequences begin.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../common/check.h"

namespace edgeops::ragged {

// Checks an offsets tensor (int32 or int64 [N + 1], 0 first, never decreasing, ending at `total`) and copies it.
inline std::vector<int64_t> read_offsets(
    const torch::stable::Tensor& offsets, int64_t total, const char* who, const char* name) {
  using torch::headeronly::ScalarType;
  const std::string n(name);
  require_tensor(offsets, who, name);
  const auto type = offsets.scalar_type();
  EDGEOPS_CHECK(
      type == ScalarType::Int || type == ScalarType::Long, TypeError, who, n + " must be int32 or int64",
      dtype_of(offsets), "Cast it with .to(torch.int64).");
  EDGEOPS_CHECK(
      offsets.dim() == 1 && offsets.numel() >= 1, ValueError, who, n + " must have shape [N + 1]", shape_of(offsets),
      "For lengths use edgeops.ragged.offsets_from_lengths.");
  EDGEOPS_CHECK(
      offsets.is_cpu(), ValueError, who, n + " must be on the CPU like the values", "another device",
      "Move it with .cpu().");
  const int64_t count = offsets.numel(), step = offsets.stride(0);
  std::vector<int64_t> starts(static_cast<size_t>(count));
  if (type == ScalarType::Int) {
    const auto* p = static_cast<const int32_t*>(offsets.const_data_ptr());
    for (int64_t i = 0; i < count; ++i) {
      starts[i] = p[i * step];
    }
  } else {
    const auto* p = static_cast<const int64_t*>(offsets.const_data_ptr());
    for (int64_t i = 0; i < count; ++i) {
      starts[i] = p[i * step];
    }
  }
  EDGEOPS_CHECK(
      starts.front() == 0, ValueError, who, n + " must start at 0", n + "[0] = " + std::to_string(starts.front()),
      "Did you pass lengths? Use edgeops.ragged.offsets_from_lengths.");
  for (int64_t i = 0; i + 1 < count; ++i) {
    EDGEOPS_CHECK(
        starts[i] <= starts[i + 1], ValueError, who, n + " must not decrease",
        std::to_string(starts[i]) + " then " + std::to_string(starts[i + 1]) + " at position " + std::to_string(i),
        "Did you pass lengths? Use edgeops.ragged.offsets_from_lengths.");
  }
  EDGEOPS_CHECK(
      starts.back() == total, ValueError, who, n + " must end at the number of rows, " + std::to_string(total),
      n + "[-1] = " + std::to_string(starts.back()), "Did you pass lengths? Use edgeops.ragged.offsets_from_lengths.");
  return starts;
}

}  // namespace edgeops::ragged
