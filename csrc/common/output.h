// SPDX-License-Identifier: Apache-2.0
// Fresh output tensors and dense inputs, without a trip through the dispatcher where none is needed: small calls are
// made thousands of times a second.
#pragma once

#include <initializer_list>
#include <optional>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace edgeops {

// A dense CPU tensor of up to three dimensions. Debug builds (EDGEOPS_POISON) fill it with NaN, so that an element
// never written fails loudly.
inline torch::stable::Tensor new_output(
    const torch::stable::Tensor& like, std::initializer_list<int64_t> shape,
    std::optional<torch::headeronly::ScalarType> type = std::nullopt) {
  const auto dims = static_cast<int64_t>(shape.size());
  int64_t strides[3];
  int64_t step = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    strides[d] = step;
    const int64_t size = shape.begin()[d];
    step *= size > 1 ? size : 1;
  }
  int32_t dtype = 0;
  if (type.has_value()) {
    dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*type));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, shape.begin(), strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  torch::stable::Tensor out(handle);
#ifdef EDGEOPS_POISON
  torch::stable::fill_(out, __builtin_nan(""));
#endif
  return out;
}

inline torch::stable::Tensor dense(const torch::stable::Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

}  // namespace edgeops
