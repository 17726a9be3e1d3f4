// SPDX-License-Identifier: Apache-2.0
// _rows_add on the CPU: rows added to the rows of a table that a list names, in the list's order.
#include <torch/csrc/stable/library.h>

#include "checks.h"

namespace edgeops::batching {
namespace {

constexpr const char* kWho = "rows_add";

template <class T>
void add(const Tensor& src, const int32_t* rows, const Tensor& out) {
  const int64_t count = src.size(0), width = src.size(1), from_ld = src.stride(0), to_ld = out.stride(0);
  const T* from = static_cast<const T*>(src.const_data_ptr());
  T* to = static_cast<T*>(out.mutable_data_ptr());
  for (int64_t i = 0; i < count; ++i) {
    const T* x = from + i * from_ld;
    T* y = to + (rows == nullptr ? i : rows[i]) * to_ld;
    for (int64_t k = 0; k < width; ++k) {
      y[k] += x[k];
    }
  }
}

void rows_add_cpu(const Tensor& src, const Tensor& rows, const Tensor& out) {
  using torch::headeronly::ScalarType;
  require_tensor(src, kWho, "src");
  const ScalarType type = src.scalar_type();
  EDGEOPS_CHECK(
      type == ScalarType::Float || type == ScalarType::Double, TypeError, kWho, "src must be float32 or float64",
      dtype_of(src), "Cast it with .to(torch.float32).");
  check_matrix(src, type, -1, -1, kWho, "src");
  check_target(out, type, -1, src.size(1), kWho, "out");
  std::vector<Tensor> keep;
  const int32_t* list = check_rows(rows, out, src.size(0), kWho, "rows", keep);
  type == ScalarType::Float ? add<float>(src, list, out) : add<double>(src, list, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_rows_add", TORCH_BOX(&rows_add_cpu));
}

}  // namespace edgeops::batching
