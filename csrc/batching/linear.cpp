// SPDX-License-Identifier: Apache-2.0
// _rows_linear, _rows_linear_pack and _rows_linear_wgrad on the CPU: checks, one parallel region.
#include "linear.h"

#include <cstring>
#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/partition.h"
#include "../common/room.h"
#include "checks.h"

namespace edgeops::batching {

int64_t panel_width(Storage storage) {
  return storage == Storage::f64 ? 8 : 16;
}

int64_t panels_of(int64_t columns, Storage storage) {
  return (columns + panel_width(storage) - 1) / panel_width(storage);
}

namespace {

using torch::headeronly::ScalarType;

// Bands of the result for the threads: of panels where there are more columns than rows, else of rows.
std::vector<LinearPiece> cut(int64_t m, int64_t n, int64_t k, Storage storage) {
  const int64_t width = panel_width(storage), panels = panels_of(n, storage);
  const double cost =
      200 + static_cast<double>(m) * n * (0.2 + static_cast<double>(k) / (storage == Storage::f64 ? 15 : 30));
  const auto workers = static_cast<double>(torch::stable::get_num_threads());
  const double limit = workers > 1 ? std::max(50e3, cost / (4 * workers)) : 1e300;
  const auto parts = cost > limit ? static_cast<int64_t>(cost / limit) + 1 : 1;
  std::vector<LinearPiece> pieces;
  if (m == 0 || n == 0) {
    return pieces;
  }
  const bool by_columns = panels * width >= m;
  const int64_t size = by_columns ? panels : m, unit = by_columns ? 4 : 24;
  const int64_t band = ((size + parts - 1) / parts + unit - 1) / unit * unit;
  for (int64_t x = 0; x < size; x += band) {
    const int64_t end = std::min(size, x + band);
    const double share = cost * static_cast<double>(end - x) / static_cast<double>(size);
    pieces.push_back(by_columns ? LinearPiece{0, m, x, end, share} : LinearPiece{x, end, 0, panels, share});
  }
  return pieces;
}

// The tables and row lists of a call, checked.
struct Operands {
  std::vector<Operand> list;
  std::vector<Tensor> keep;
  int64_t k = 0;
};

Operands read_operands(
    const std::vector<Tensor>& tables, const std::vector<Tensor>& rows, ScalarType type, int64_t m, const char* who) {
  EDGEOPS_CHECK(
      tables.size() == rows.size() && !tables.empty(), ValueError, who,
      "tables and rows must be lists of one length, not empty",
      std::to_string(tables.size()) + " and " + std::to_string(rows.size()), "Pass a row list for each table.");
  Operands out;
  out.list.reserve(tables.size());
  out.keep.reserve(tables.size());
  for (size_t i = 0; i < tables.size(); ++i) {
    const std::string place = "[" + std::to_string(i) + "]";
    check_matrix(tables[i], type, -1, -1, who, "tables" + place);
    out.list.push_back(operand_of(tables[i], check_rows(rows[i], tables[i], m, who, "rows" + place, out.keep)));
    out.k += tables[i].size(1);
  }
  return out;
}

// The weight in panels; made by the call into `room` where it comes as a matrix.
const void* read_weight(
    const Tensor& weight, ScalarType type, Storage storage, int64_t n, int64_t k, Room& room, const char* who) {
  require_tensor(weight, who, "weight");
  const int64_t panels = panels_of(n, storage), width = panel_width(storage);
  if (weight.dim() == 3) {
    EDGEOPS_CHECK(
        weight.scalar_type() == compute_type(storage), TypeError, who,
        std::string("a packed weight must have dtype ") + torch::headeronly::toString(compute_type(storage)),
        dtype_of(weight), "Pack it from a weight of the dtype of the tables.");
    EDGEOPS_CHECK(
        weight.size(0) == panels && weight.size(1) == k && weight.size(2) == width && weight.is_contiguous() &&
            weight.is_cpu(),
        ValueError, who,
        "a packed weight must be dense, of shape (" + std::to_string(panels) + ", " + std::to_string(k) + ", " +
            std::to_string(width) + ") on the CPU",
        shape_of(weight), "Make it with _rows_linear_pack from a weight of [N, sum of the table widths].");
    return weight.const_data_ptr();
  }
  EDGEOPS_CHECK(
      weight.scalar_type() == type, TypeError, who, std::string("weight must have the dtype of the tables"),
      dtype_of(weight), "Cast one of them with .to(dtype).");
  EDGEOPS_CHECK(
      weight.dim() == 2 && weight.size(0) == n && weight.size(1) == k && weight.is_cpu(), ValueError, who,
      "weight must have shape (" + std::to_string(n) + ", " + std::to_string(k) + ") on the CPU, or be packed",
      shape_of(weight), "Check the order of the tables and the width of out.");
  room = room_of(panels * width * k * (storage == Storage::f64 ? 8 : 4));
  linear_kernels(active_isa(), storage)
      .pack(weight.const_data_ptr(), n, k, weight.stride(0), weight.stride(1), 0, panels, room.get(), k * width);
  return room.get();
}

}  // namespace

void run_linear(const Linear& call, Storage storage) {
  const LinearKernels& kernels = linear_kernels(active_isa(), storage);
  auto pieces = cut(call.m, call.n, call.k, storage);
  run_by_cost(pieces, [&](const LinearPiece& piece) { kernels.linear(call, piece, scratch_of_thread); });
}

void run_wgrad(const WeightGrad& call, Storage storage) {
  const LinearKernels& kernels = linear_kernels(active_isa(), storage);
  // rows of dweight only: a piece gathers its operands itself
  std::vector<LinearPiece> pieces;
  const int64_t n = call.n, panels = panels_of(call.k, storage);
  const double cost = static_cast<double>(n) * static_cast<double>(call.m) * (0.2 + static_cast<double>(call.k) / 30);
  const auto workers = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t parts = workers > 1 && cost > 100e3 ? 2 * workers : 1;
  const int64_t band = ((n + parts - 1) / parts + 5) / 6 * 6;
  for (int64_t x = 0; x < n && call.m > 0; x += band) {
    const int64_t end = std::min(n, x + band);
    pieces.push_back({x, end, 0, panels, cost * static_cast<double>(end - x) / static_cast<double>(n)});
  }
  run_by_cost(pieces, [&](const LinearPiece& piece) { kernels.wgrad(call, piece, scratch_of_thread); });
}

Tensor rows_linear_pack_cpu(std::vector<Tensor> weights) {
  const char* who = "rows_linear_pack";
  EDGEOPS_CHECK(!weights.empty(), ValueError, who, "weights must not be empty", "none", "Pass at least one matrix.");
  const Storage storage = require_storage(weights[0], who, "weights[0]");
  const int64_t n = weights[0].dim() == 2 ? weights[0].size(0) : -1;
  int64_t k = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    const std::string name = "weights[" + std::to_string(i) + "]";
    require_tensor(weight, who, name.c_str());
    EDGEOPS_CHECK(
        weight.scalar_type() == weights[0].scalar_type(), TypeError, who, name + " must have the dtype of the first",
        dtype_of(weight), "Cast it with .to(dtype).");
    EDGEOPS_CHECK(
        weight.dim() == 2 && weight.size(0) == n && weight.is_cpu(), ValueError, who,
        name + " must have shape [N, K] on the CPU, with the N of the first", shape_of(weight),
        "Pass matrices with equal numbers of rows.");
    k += weight.size(1);
  }
  const int64_t panels = panels_of(n, storage), width = panel_width(storage);
  Tensor out = new_output(weights[0], {panels, k, width}, compute_type(storage));
  const LinearKernels& kernels = linear_kernels(active_isa(), storage);
  std::vector<LinearPiece> pieces;
  for (int64_t x = 0; x < panels; x += 8) {
    pieces.push_back({0, 0, x, std::min(panels, x + 8), 16.0 * 8 * static_cast<double>(k)});
  }
  const int64_t bytes = storage == Storage::f64 ? 8 : 4;
  char* dst = static_cast<char*>(out.mutable_data_ptr());
  run_by_cost(pieces, [&](const LinearPiece& piece) {
    char* to = dst;
    for (const Tensor& weight : weights) {
      const int64_t columns = weight.size(1);
      kernels.pack(
          weight.const_data_ptr(), n, columns, weight.stride(0), weight.stride(1), piece.p0, piece.p1, to, k * width);
      to += columns * width * bytes;
    }
  });
  return out;
}

void rows_linear_cpu(
    std::vector<Tensor> tables, std::vector<Tensor> rows, const Tensor& weight, std::optional<Tensor> bias,
    const Tensor& out) {
  const char* who = "rows_linear";
  const Storage storage = require_storage(out, who, "out");
  const ScalarType type = out.scalar_type();
  check_target(out, type, -1, -1, who, "out");
  const int64_t m = out.size(0), n = out.size(1);
  const Operands operands = read_operands(tables, rows, type, m, who);
  const LinearKernels& kernels = linear_kernels(active_isa(), storage);
  Room packed, padded;
  Linear call{m,       n,       operands.k, operands.list.data(), static_cast<int64_t>(operands.list.size()),
              nullptr, nullptr, nullptr,    out.stride(0)};
  call.weight = read_weight(weight, type, storage, n, operands.k, packed, who);
  if (bias.has_value()) {
    require_tensor(*bias, who, "bias");
    EDGEOPS_CHECK(
        bias->scalar_type() == type, TypeError, who, "bias must have the dtype of out", dtype_of(*bias),
        "Cast it with .to(dtype).");
    EDGEOPS_CHECK(
        bias->dim() == 1 && bias->size(0) == n && bias->is_cpu(), ValueError, who,
        "bias must have shape (" + std::to_string(n) + ",) on the CPU", shape_of(*bias), "Pass one value a column.");
    const Tensor values = dense(*bias);
    const int64_t size = storage == Storage::f64 ? 8 : 4, room = panels_of(n, storage) * kPanelBytes;
    padded = room_of(room);
    std::memset(static_cast<char*>(padded.get()) + n * size, 0, static_cast<size_t>(room - n * size));
    kernels.widen(values.const_data_ptr(), n, padded.get());
    call.bias = padded.get();
  }
  call.out = out.mutable_data_ptr();
  run_linear(call, storage);
}

void rows_linear_wgrad_cpu(
    const Tensor& grad, std::vector<Tensor> tables, std::vector<Tensor> rows, const Tensor& dweight,
    std::optional<Tensor> dbias) {
  const char* who = "rows_linear_wgrad";
  const Storage storage = require_storage(grad, who, "grad");
  const ScalarType type = grad.scalar_type(), sums = compute_type(storage);
  check_matrix(grad, type, -1, -1, who, "grad");
  const int64_t m = grad.size(0), n = grad.size(1);
  const Operands operands = read_operands(tables, rows, type, m, who);
  check_target(dweight, sums, n, operands.k, who, "dweight");
  WeightGrad call{
      m,
      n,
      operands.k,
      grad.const_data_ptr(),
      grad.stride(0),
      operands.list.data(),
      static_cast<int64_t>(operands.list.size()),
      dweight.mutable_data_ptr(),
      dweight.stride(0),
      nullptr};
  if (dbias.has_value()) {
    require_tensor(*dbias, who, "dbias");
    EDGEOPS_CHECK(
        dbias->scalar_type() == sums, TypeError, who,
        std::string("dbias must have dtype ") + torch::headeronly::toString(sums), dtype_of(*dbias),
        "Cast it with .to(dtype).");
    EDGEOPS_CHECK(
        dbias->dim() == 1 && dbias->size(0) == n && dbias->is_contiguous() && dbias->is_cpu(), ValueError, who,
        "dbias must be dense, of shape (" + std::to_string(n) + ",) on the CPU", shape_of(*dbias),
        "Pass one value a column of grad.");
    call.dbias = dbias->mutable_data_ptr();
  }
  run_wgrad(call, storage);
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_rows_linear", TORCH_BOX(&rows_linear_cpu));
  m.impl("_rows_linear_pack", TORCH_BOX(&rows_linear_pack_cpu));
  m.impl("_rows_linear_wgrad", TORCH_BOX(&rows_linear_wgrad_cpu));
}

}  // namespace edgeops::batching
