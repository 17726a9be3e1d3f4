// SPDX-License-Identifier: Apache-2.0
// Fresh output tensors and dense inputs, without a trip through the dispatcher where none is needed: small calls are
// made thousands of times a second.
#pragma once

#include <cstring>
#include <initializer_list>
#include <optional>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace edgeops {

constexpr int64_t kMaxDims = 64;  // torch has no more

// A dense tensor on the device of `like`, of up to kMaxDims dimensions. Debug builds (EDGEOPS_POISON) fill it with NaN,
// so that an element never written fails loudly.
inline torch::stable::Tensor new_output(
    const torch::stable::Tensor& like, const int64_t* shape, int64_t dims,
    std::optional<torch::headeronly::ScalarType> type = std::nullopt) {
  int64_t strides[kMaxDims];
  int64_t step = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    strides[d] = step;
    const int64_t size = shape[d];
    step *= size > 1 ? size : 1;
  }
  int32_t dtype = 0;
  if (type.has_value()) {
    dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*type));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  }
  int32_t device = 0, index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, shape, strides, dtype, device, index, &handle));
  torch::stable::Tensor out(handle);
#ifdef EDGEOPS_POISON
  if (out.is_cpu() && out.numel() > 0) {  // NaN in every floating point type, -1 in integers
    const int byte = dtype == aoti_torch_dtype_bool() ? 1 : 0xFF;
    std::memset(out.mutable_data_ptr(), byte, static_cast<size_t>(out.numel()) * out.element_size());
  }
#endif
  return out;
}

inline torch::stable::Tensor new_output(
    const torch::stable::Tensor& like, std::initializer_list<int64_t> shape,
    std::optional<torch::headeronly::ScalarType> type = std::nullopt) {
  return new_output(like, shape.begin(), static_cast<int64_t>(shape.size()), type);
}

// `lead` sizes, then those of x from dimension `from` on.
inline torch::stable::Tensor new_rows(
    const torch::stable::Tensor& x, std::initializer_list<int64_t> lead, int64_t from) {
  int64_t shape[kMaxDims];
  int64_t dims = 0;
  for (const int64_t size : lead) {
    shape[dims++] = size;
  }
  for (int64_t d = from; d < x.dim(); ++d) {
    shape[dims++] = x.size(d);
  }
  return new_output(x, shape, dims);
}

inline torch::stable::Tensor dense(const torch::stable::Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

}  // namespace edgeops
