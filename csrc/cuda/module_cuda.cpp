// SPDX-License-Identifier: Apache-2.0
// _C_cuda: what the CUDA kernels of csrc/**/*.cu need to be ops. Loaded only where torch has CUDA; schemas are in
// module.cpp.
#include <cstring>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/check.h"
#include "../common/output.h"
#include "../ragged/pack_cuda.h"

namespace edgeops::ragged {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void* current_stream(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return stream;
}

// Whether dimensions from `lead` on lie densely in memory, in order.
bool dense_from(const Tensor& x, int64_t lead) {
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d >= lead; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) {
      return false;
    }
    expected *= x.size(d);
  }
  return true;
}

RowCopy describe_copy(const char* who, const Tensor& padded, const Tensor& packed, const Tensor& offsets) {
  const auto type = offsets.scalar_type();
  EDGEOPS_CHECK(
      type == ScalarType::Int || type == ScalarType::Long, TypeError, who, "offsets must be int32 or int64",
      dtype_of(offsets), "Use layout.offsets.");
  EDGEOPS_CHECK(
      offsets.dim() == 1 && offsets.numel() >= 1 && offsets.is_contiguous(), ValueError, who,
      "offsets must be a contiguous [N + 1]", shape_of(offsets), "Use layout.offsets.");
  EDGEOPS_CHECK(
      padded.is_cuda() && packed.is_cuda() && offsets.is_cuda() &&
          padded.get_device_index() == packed.get_device_index() &&
          padded.get_device_index() == offsets.get_device_index(),
      ValueError, who, "all tensors must be on one GPU", "several devices", "Move them with .to(device).");
  EDGEOPS_CHECK(
      padded.scalar_type() == packed.scalar_type(), TypeError, who, "padded and packed must have one dtype",
      dtype_of(padded) + " and " + dtype_of(packed), "Convert one of them.");
  bool fits = padded.dim() >= 2 && packed.dim() == padded.dim() - 1 && padded.size(0) == offsets.numel() - 1;
  for (int64_t d = 1; fits && d < packed.dim(); ++d) {
    fits = packed.size(d) == padded.size(d + 1);
  }
  EDGEOPS_CHECK(
      fits, ValueError, who, "needs padded [N, L, ...], packed [T, ...] and N + 1 offsets",
      shape_of(padded) + ", " + shape_of(packed) + " and " + std::to_string(offsets.numel()) + " offsets",
      "Check the trailing dimensions.");

  const auto bytes = static_cast<int64_t>(padded.element_size());
  RowCopy copy{};
  copy.offsets = offsets.const_data_ptr();
  copy.wide_offsets = type == ScalarType::Long;
  copy.num_sequences = padded.size(0);
  copy.length = padded.size(1);
  copy.total = packed.size(0);
  copy.row_bytes = bytes;
  for (int64_t d = 2; d < padded.dim(); ++d) {
    copy.row_bytes *= padded.size(d);
  }
  copy.padded_stride_sequence = bytes * padded.stride(0);
  copy.padded_stride_row = bytes * padded.stride(1);
  copy.packed_stride_row = bytes * packed.stride(0);
  return copy;
}

void report(const char* who, const char* error) {
  STD_TORCH_CHECK(error == nullptr, who, ": the CUDA launch failed: ", error);
}

Tensor ragged_pack_cuda(Tensor padded, Tensor offsets, int64_t total) {
  if (!dense_from(padded, 2)) {
    padded = torch::stable::contiguous(padded);
  }
  offsets = torch::stable::contiguous(offsets);
  const Tensor out = new_rows(padded, {total}, 2);
  RowCopy copy = describe_copy("pack", padded, out, offsets);
  copy.source = padded.const_data_ptr();
  copy.target = out.mutable_data_ptr();
  const torch::stable::accelerator::DeviceGuard guard(padded.get_device_index());
  report("pack", launch_pack(copy, current_stream(padded)));
  return out;
}

Tensor ragged_unpack_cuda(Tensor values, Tensor offsets, int64_t length, double padding_value) {
  if (!dense_from(values, 1)) {
    values = torch::stable::contiguous(values);
  }
  offsets = torch::stable::contiguous(offsets);
  const Tensor out = new_rows(values, {offsets.numel() - 1, length}, 1);
  RowCopy copy = describe_copy("unpack", out, values, offsets);
  copy.source = values.const_data_ptr();
  copy.target = out.mutable_data_ptr();
  if (padding_value != 0.0) {
    // torch converts the number to the dtype, on the host
    const Tensor element = torch::stable::full({1}, padding_value, values.scalar_type());
    const size_t bytes = element.element_size();
    for (size_t at = 0; at + bytes <= sizeof(copy.fill); at += bytes) {
      std::memcpy(copy.fill + at, element.const_data_ptr(), bytes);
    }
  }
  const torch::stable::accelerator::DeviceGuard guard(values.get_device_index());
  report("unpack", launch_unpack(copy, current_stream(values)));
  return out;
}

}  // namespace
}  // namespace edgeops::ragged

STABLE_TORCH_LIBRARY_IMPL(edgeops, CUDA, m) {
  m.impl("_ragged_pack", TORCH_BOX(&edgeops::ragged::ragged_pack_cuda));
  m.impl("_ragged_unpack", TORCH_BOX(&edgeops::ragged::ragged_unpack_cuda));
}
