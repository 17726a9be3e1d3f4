// SPDX-License-Identifier: Apache-2.0
// _subspace_project, _subspace_expand and _subspace_value_grad on the CPU. LSP-Offload, AAAI 2025, sections 3 and 4.
#include "subspace.h"

#include <torch/csrc/stable/library.h>

#include "../common/partition.h"
#include "checks.h"

namespace edgeops::offload {
namespace {

constexpr double kEntryNs = 0.1;  // one entry times one column
constexpr double kMoveNs = 0.15;  // one number brought into a pane

template <class T>
void read_entries(const Tensor& order, const Tensor& value, int64_t count, const char* who, std::vector<char>& out) {
  const auto* from = static_cast<const int32_t*>(order.const_data_ptr());
  const auto* v = static_cast<const T*>(value.const_data_ptr());
  const int64_t total = value.numel(), r = value.size(1);
  out.resize(static_cast<size_t>(count) * sizeof(Entry<T>));
  auto* entries = reinterpret_cast<Entry<T>*>(out.data());
  for (int64_t e = 0; e < count; ++e) {
    const int32_t at = from[e];
    EDGEOPS_CHECK(
        at >= 0 && at < total, ValueError, who,
        "order must be positions in index, in [0, " + std::to_string(total) + ")", std::to_string(at),
        "Build projectors with edgeops.offload.");
    entries[e] = {static_cast<int32_t>(static_cast<uint32_t>(at) / static_cast<uint32_t>(r)), v[at]};
  }
}

Tensor project_cpu(
    const Tensor& x, const Tensor& index, const Tensor& value_in, const Tensor& starts_in, const Tensor& order_in) {
  const char* who = "subspace_project";
  const Storage storage = require_storage(x, who, "x");
  check_matrix(x, who, "x");
  require_tensor(starts_in, who, "starts");
  require_tensor(order_in, who, "order");
  for (const auto& [tensor, name] : {std::pair(&starts_in, "starts"), std::pair(&order_in, "order")}) {
    EDGEOPS_CHECK(
        tensor->scalar_type() == ScalarType::Int && tensor->dim() == 1 && tensor->is_cpu(), ValueError, who,
        std::string(name) + " must be an int32 vector on the CPU", shape_of(*tensor) + ", " + dtype_of(*tensor),
        "Build projectors with edgeops.offload.");
  }
  const int64_t d = starts_in.numel() - 1;
  EDGEOPS_CHECK(
      d > 0, ValueError, who, "starts must have an element for each column and one more", shape_of(starts_in),
      "Build projectors with edgeops.offload.");
  require_tensor(index, who, "index");
  check_matrix(index, who, "index");
  EDGEOPS_CHECK(
      index.size(0) == x.size(0), ValueError, who,
      "x must have a row for each of the projector's, " + std::to_string(index.size(0)), shape_of(x), "Transpose it.");
  const Tensor value = read_value(value_in, index, storage, who, "value");
  EDGEOPS_CHECK(
      value.numel() <= std::numeric_limits<int32_t>::max(), ValueError, who, "value must have fewer than 2^31 elements",
      shape_of(value), "Use a smaller r.");
  const Tensor starts_dense = dense(starts_in), order = dense(order_in);
  const auto* from = static_cast<const int32_t*>(starts_dense.const_data_ptr());
  std::vector<int64_t> starts(from, from + d + 1);
  for (int64_t c = 0; c < d; ++c) {
    EDGEOPS_CHECK(
        starts[0] == 0 && starts[c] <= starts[c + 1] && starts[c + 1] <= order.numel(), ValueError, who,
        "starts must begin with 0, never decrease and end within order (" + std::to_string(order.numel()) + ")",
        std::to_string(starts[c]) + ", " + std::to_string(starts[c + 1]), "Build projectors with edgeops.offload.");
  }
  std::vector<char> entries;
  if (storage == Storage::f64) {
    read_entries<double>(order, value, starts[d], who, entries);
  } else {
    read_entries<float>(order, value, starts[d], who, entries);
  }
  const int64_t columns = x.size(1);
  Tensor out = new_output(x, {d, columns});
  std::vector<Tensor> kept;
  const Block all = block_of(x, kept);
  const auto& kernels = subspace_kernels(active_isa(), storage);
  void* to = out.mutable_data_ptr();
  auto pieces =
      column_pieces(columns, kEntryNs * static_cast<double>(starts[d]) + kMoveNs * static_cast<double>(x.size(0)));
  run_by_cost(pieces, [&](const ColumnPiece& piece) {
    Block block = all;
    block.first = piece.first;
    block.count = piece.count;
    kernels.project(block, starts.data(), entries.data(), d, to, columns);
  });
  return out;
}

Tensor expand_cpu(const Tensor& y, const Tensor& index_in, const Tensor& value_in) {
  const char* who = "subspace_expand";
  const Storage storage = require_storage(y, who, "y");
  check_matrix(y, who, "y");
  require_tensor(index_in, who, "index");
  check_matrix(index_in, who, "index");
  const int64_t m = index_in.size(0), r = index_in.size(1), columns = y.size(1);
  const auto index = read_index(index_in, m, y.size(0), who, "index");
  const Tensor value = read_value(value_in, index_in, storage, who, "value");
  Tensor out = new_output(y, {m, columns});
  std::vector<Tensor> kept;
  const Block all = block_of(y, kept);
  const auto& kernels = subspace_kernels(active_isa(), storage);
  void* to = out.mutable_data_ptr();
  const void* values = value.const_data_ptr();
  auto pieces =
      column_pieces(columns, kEntryNs * static_cast<double>(m * r) + kMoveNs * static_cast<double>(m + y.size(0)));
  run_by_cost(pieces, [&](const ColumnPiece& piece) {
    Block block = all;
    block.first = piece.first;
    block.count = piece.count;
    kernels.expand(block, index.data(), values, m, r, to, columns);
  });
  return out;
}

struct RowPiece {
  int64_t begin, end;
  double cost;
};

Tensor value_grad_cpu(const Tensor& x_in, const Tensor& y_in, const Tensor& index_in) {
  const char* who = "subspace_value_grad";
  const Storage storage = require_storage(x_in, who, "x");
  check_matrix(x_in, who, "x");
  require_tensor(y_in, who, "y");
  check_matrix(y_in, who, "y");
  const int64_t m = x_in.size(0), n = x_in.size(1);
  EDGEOPS_CHECK(
      y_in.scalar_type() == x_in.scalar_type() && y_in.size(1) == n, ValueError, who,
      "y must have the columns and the dtype of x, " + shape_of(x_in) + ", " + dtype_of(x_in),
      shape_of(y_in) + ", " + dtype_of(y_in), "One is projected, the other is the gradient of the result.");
  const auto index = read_index(index_in, m, y_in.size(0), who, "index");
  const int64_t r = index_in.size(1);
  const Tensor x = dense(x_in), y = dense(y_in);
  Tensor out = new_output(x, {m, r}, compute_type(storage));
  const auto& kernels = subspace_kernels(active_isa(), storage);
  const void *px = x.const_data_ptr(), *py = y.const_data_ptr();
  void* to = out.mutable_data_ptr();
  std::vector<RowPiece> pieces;
  for (int64_t i = 0; i < m; i += 16) {
    const int64_t end = std::min(m, i + 16);
    pieces.push_back({i, end, 50 + 0.1 * static_cast<double>((end - i) * r * n)});
  }
  run_by_cost(pieces, [&](const RowPiece& piece) {
    kernels.value_grad(px, py, n, index.data(), r, piece.begin, piece.end, to);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_subspace_project", TORCH_BOX(&project_cpu));
  m.impl("_subspace_expand", TORCH_BOX(&expand_cpu));
  m.impl("_subspace_value_grad", TORCH_BOX(&value_grad_cpu));
}

}  // namespace edgeops::offload
