// SPDX-License-Identifier: Apache-2.0
// The four storage types of the CPU kernels, as an index into their tables.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <torch/headeronly/core/ScalarType.h>

#include "check.h"

namespace edgeops {

enum class Storage : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

inline std::optional<Storage> storage_of(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return Storage::f32;
    case ScalarType::Double:
      return Storage::f64;
    case ScalarType::Half:
      return Storage::f16;
    case ScalarType::BFloat16:
      return Storage::bf16;
    default:
      return std::nullopt;
  }
}

// Statistics and log-sum-exp are kept in the compute type.
inline torch::headeronly::ScalarType compute_type(Storage storage) {
  using torch::headeronly::ScalarType;
  return storage == Storage::f64 ? ScalarType::Double : ScalarType::Float;
}

inline Storage require_storage(const torch::stable::Tensor& x, const char* who, const char* name) {
  require_tensor(x, who, name);
  const auto storage = storage_of(x.scalar_type());
  EDGEOPS_CHECK(
      storage.has_value(), TypeError, who, std::string(name) + " must be float32, float64, float16 or bfloat16",
      dtype_of(x), "Cast it, for example with .float().");
  return *storage;
}

}  // namespace edgeops
