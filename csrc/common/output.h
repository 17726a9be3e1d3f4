// SPDX-License-Identifier: Apache-2.0
// Fresh output tensors. Debug builds (EDGEOPS_POISON) fill them with NaN, so an element never written fails loudly.
#pragma once

#include <initializer_list>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace edgeops {

inline torch::stable::Tensor new_output(
    const torch::stable::Tensor& like, std::initializer_list<int64_t> shape,
    std::optional<torch::headeronly::ScalarType> type = std::nullopt) {
  auto out = torch::stable::new_empty(like, std::vector<int64_t>(shape), type);
#ifdef EDGEOPS_POISON
  torch::stable::fill_(out, __builtin_nan(""));
#endif
  return out;
}

}  // namespace edgeops
