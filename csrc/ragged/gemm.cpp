// SPDX-License-Identifier: Apache-2.0
// _vgemm, _vgemm_packed and _grouped_mm on the CPU: checks, the list of products, one parallel region.
#include "gemm.h"

#include <cstdlib>
#include <memory>
#include <new>
#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "../common/room.h"

namespace edgeops::ragged {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whole products, or bands of those that would keep one thread busy after the others are done.
std::vector<GemmPiece> cut(const std::vector<GemmGroup>& groups) {
  const auto workers = static_cast<double>(torch::stable::get_num_threads());
  const auto cost_of = [](const GemmGroup& g) {
    const auto m = static_cast<double>(g.m), n = static_cast<double>(g.n), k = static_cast<double>(g.k);
    return 200 + m * n * (0.2 + k / 30) + 0.2 * (m + n) * k;
  };
  double total = 0;
  for (const GemmGroup& g : groups) {
    total += cost_of(g);
  }
  const double limit = workers > 1 ? std::max(100e3, total / (6 * workers)) : 1e300;
  std::vector<GemmPiece> pieces;
  pieces.reserve(groups.size());
  for (int64_t i = 0; i < static_cast<int64_t>(groups.size()); ++i) {
    const GemmGroup& g = groups[i];
    if (g.m == 0 || g.n == 0) {
      continue;
    }
    const double cost = cost_of(g);
    const int64_t parts = cost > limit ? static_cast<int64_t>(cost / limit) + 1 : 1;
    const bool by_columns = g.n >= g.m;
    const int64_t size = by_columns ? g.n : g.m, unit = by_columns ? 64 : 24;
    const int64_t band = ((size + parts - 1) / parts + unit - 1) / unit * unit;
    for (int64_t x = 0; x < size; x += band) {
      const int64_t end = std::min(size, x + band);
      const double share = cost * static_cast<double>(end - x) / static_cast<double>(size);
      pieces.push_back(by_columns ? GemmPiece{i, 0, g.m, x, end, share} : GemmPiece{i, x, end, 0, g.n, share});
    }
  }
  return pieces;
}

void multiply(const std::vector<GemmGroup>& groups, Storage storage) {
  const GemmRun run = gemm_kernel(active_isa(), storage);
  auto pieces = cut(groups);
  run_by_cost(pieces, [&](const GemmPiece& piece) { run(groups[piece.group], piece, scratch_of_thread); });
}

// Element type and place of b as those of a.
void check_pair(const Tensor& a, const Tensor& b, const char* who, const char* name_a, const char* name_b) {
  require_tensor(b, who, name_b);
  EDGEOPS_CHECK(
      a.scalar_type() == b.scalar_type(), TypeError, who,
      std::string(name_a) + " and " + name_b + " must have one dtype", dtype_of(a) + " and " + dtype_of(b),
      "Cast one of them with .to(dtype).");
  EDGEOPS_CHECK(
      a.is_cpu() && b.is_cpu(), ValueError, who, std::string(name_a) + " and " + name_b + " must be on one device",
      "one elsewhere", "Move it with .to(device).");
}

// A matrix of a list, or a slice of a tensor of three dimensions.
struct Matrix {
  const char* data;
  int64_t rows, cols, row, col;
};

Matrix matrix_of(const Tensor& x, bool transposed) {
  const Matrix m{static_cast<const char*>(x.const_data_ptr()), x.size(0), x.size(1), x.stride(0), x.stride(1)};
  return transposed ? Matrix{m.data, m.cols, m.rows, m.col, m.row} : m;
}

// Moves a matrix on by `bytes`; one without elements may have no memory to point into.
void advance(Matrix& m, int64_t bytes) {
  if (m.data != nullptr) {
    m.data += bytes;
  }
}

GemmGroup group_of(const Matrix& a, const Matrix& b, void* c, int64_t c_row) {
  return {a.rows, b.cols, a.cols, a.data, a.row, a.col, b.data, b.row, b.col, c, c_row};
}

}  // namespace

std::vector<Tensor> vgemm_cpu(std::vector<Tensor> a, std::vector<Tensor> b, bool trans_a, bool trans_b) {
  const char* who = "vgemm";
  EDGEOPS_CHECK(
      a.size() == b.size(), ValueError, who, "a and b must have the same number of matrices",
      std::to_string(a.size()) + " and " + std::to_string(b.size()), "Pair each matrix of a with one of b.");
  std::vector<Tensor> out;
  if (a.empty()) {
    return out;
  }
  const Storage storage = require_storage(a[0], who, "a[0]");
  std::vector<GemmGroup> groups;
  groups.reserve(a.size());
  out.reserve(a.size());
  for (size_t g = 0; g < a.size(); ++g) {
    const auto name = [&](const char* list) { return std::string(list) + "[" + std::to_string(g) + "]"; };
    if (!a[g].defined() || !b[g].defined() || a[g].scalar_type() != a[0].scalar_type() ||
        b[g].scalar_type() != a[0].scalar_type() || !a[g].is_cpu() || !b[g].is_cpu()) {
      require_tensor(a[g], who, name("a").c_str());
      check_pair(a[0], a[g], who, "a[0]", name("a").c_str());
      check_pair(a[0], b[g], who, "a[0]", name("b").c_str());
    }
    EDGEOPS_CHECK(
        a[g].dim() == 2 && b[g].dim() == 2, ValueError, who, name("a") + " and " + name("b") + " must be matrices",
        shape_of(a[g]) + " and " + shape_of(b[g]), "Reshape them to two dimensions.");
    const Matrix left = matrix_of(a[g], trans_a), right = matrix_of(b[g], trans_b);
    EDGEOPS_CHECK(
        left.cols == right.rows, ValueError, who, "the columns of " + name("a") + " must be the rows of " + name("b"),
        shape_of(a[g]) + " and " + shape_of(b[g]), "Check the order of the lists.");
    out.push_back(new_output(a[0], {left.rows, right.cols}));
    groups.push_back(group_of(left, right, out.back().mutable_data_ptr(), right.cols));
  }
  multiply(groups, storage);
  return out;
}

namespace {

// Checks sizes, int64 [G, 3], and copies it.
std::vector<int64_t> read_sizes(const Tensor& sizes, const char* who) {
  require_tensor(sizes, who, "sizes");
  EDGEOPS_CHECK(
      sizes.scalar_type() == ScalarType::Long, TypeError, who, "sizes must be int64", dtype_of(sizes),
      "Cast it with .to(torch.int64).");
  EDGEOPS_CHECK(
      sizes.dim() == 2 && sizes.size(1) == 3 && sizes.is_cpu(), ValueError, who,
      "sizes must have shape [G, 3], the m, n, k of each product, on the CPU", shape_of(sizes),
      "Build it with torch.tensor([(m, n, k), ...]).");
  std::vector<int64_t> out(static_cast<size_t>(sizes.numel()));
  const auto* p = static_cast<const int64_t*>(sizes.const_data_ptr());
  const int64_t row = sizes.stride(0), col = sizes.stride(1);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = p[static_cast<int64_t>(i / 3) * row + static_cast<int64_t>(i % 3) * col];
    EDGEOPS_CHECK(
        out[i] >= 0, ValueError, who, "sizes must not be negative",
        std::to_string(out[i]) + " for product " + std::to_string(i / 3), "Use 0 for an empty product.");
  }
  return out;
}

void add_area(int64_t& total, int64_t rows, int64_t cols, const char* who) {
  int64_t area = 0;
  EDGEOPS_CHECK(
      !__builtin_mul_overflow(rows, cols, &area) && !__builtin_add_overflow(total, area, &total), ValueError, who,
      "sizes must describe fewer than 2^63 elements", std::to_string(rows) + " x " + std::to_string(cols),
      "Check the sizes.");
}

void check_total(const Tensor& x, int64_t total, const char* who, const char* name) {
  EDGEOPS_CHECK(
      x.dim() == 1 && x.numel() == total, ValueError, who,
      std::string(name) + " must have shape (" + std::to_string(total) + ",) to fit the sizes", shape_of(x),
      "Concatenate the flattened matrices.");
}

}  // namespace

Tensor vgemm_packed_cpu(
    const Tensor& a_in, const Tensor& b_in, const Tensor& sizes_in, bool trans_a, bool trans_b, int64_t total) {
  const char* who = "vgemm_packed";
  const Storage storage = require_storage(a_in, who, "a");
  check_pair(a_in, b_in, who, "a", "b");
  const auto sizes = read_sizes(sizes_in, who);
  int64_t total_a = 0, total_b = 0, total_c = 0;
  for (size_t i = 0; i < sizes.size(); i += 3) {
    add_area(total_a, sizes[i], sizes[i + 2], who);
    add_area(total_b, sizes[i + 2], sizes[i + 1], who);
    add_area(total_c, sizes[i], sizes[i + 1], who);
  }
  check_total(a_in, total_a, who, "a");
  check_total(b_in, total_b, who, "b");
  EDGEOPS_CHECK(
      total == total_c, ValueError, who,
      "total must be the number of elements of the result, " + std::to_string(total_c), std::to_string(total),
      "Leave it out to have it computed.");
  const Tensor a = dense(a_in), b = dense(b_in);
  Tensor c = new_output(a, {total});
  const auto size = static_cast<int64_t>(a.element_size());
  const auto *pa = static_cast<const char*>(a.const_data_ptr()), *pb = static_cast<const char*>(b.const_data_ptr());
  auto* pc = static_cast<char*>(c.mutable_data_ptr());
  std::vector<GemmGroup> groups;
  groups.reserve(sizes.size() / 3);
  for (size_t i = 0; i < sizes.size(); i += 3) {
    const int64_t m = sizes[i], n = sizes[i + 1], k = sizes[i + 2];
    const Matrix left = trans_a ? Matrix{pa, m, k, 1, m} : Matrix{pa, m, k, k, 1};
    const Matrix right = trans_b ? Matrix{pb, k, n, 1, k} : Matrix{pb, k, n, n, 1};
    groups.push_back(group_of(left, right, pc, n));
    pa += m * k * size;
    pb += k * n * size;
    pc += m * n * size;
  }
  multiply(groups, storage);
  return c;
}

namespace {

// Ends of the groups, int32 or int64 [G], behind a leading 0.
std::vector<int64_t> read_ends(const Tensor& offs, int64_t length, const char* who) {
  const auto type = offs.scalar_type();
  EDGEOPS_CHECK(
      type == ScalarType::Int || type == ScalarType::Long, TypeError, who, "offs must be int32 or int64",
      dtype_of(offs), "Cast it with .to(torch.int32).");
  EDGEOPS_CHECK(
      offs.dim() == 1 && offs.is_cpu(), ValueError, who, "offs must have shape [G], on the device of x", shape_of(offs),
      "Pass the end of each group: lengths.cumsum(0).");
  std::vector<int64_t> ends{0};
  ends.reserve(static_cast<size_t>(offs.numel()) + 1);
  for (int64_t g = 0; g < offs.numel(); ++g) {
    const int64_t at = g * offs.stride(0);
    const int64_t end = type == ScalarType::Int ? static_cast<const int32_t*>(offs.const_data_ptr())[at]
                                                : static_cast<const int64_t*>(offs.const_data_ptr())[at];
    EDGEOPS_CHECK(
        end >= ends.back(), ValueError, who, "offs must begin at 0 or more and never decrease",
        std::to_string(end) + " after " + std::to_string(ends.back()) + " at position " + std::to_string(g),
        "Pass the end of each group: lengths.cumsum(0).");
    ends.push_back(end);
  }
  EDGEOPS_CHECK(
      ends.back() <= length, ValueError, who, "offs must end at or before " + std::to_string(length),
      std::to_string(ends.back()), "Pass the end of each group: lengths.cumsum(0).");
  return ends;
}

void clear(char* p, int64_t rows, int64_t row_bytes, int64_t step) {
  for (int64_t r = 0; r < rows; ++r) {
    std::fill_n(p + r * step, row_bytes, 0);
  }
}

}  // namespace

Tensor grouped_mm_cpu(const Tensor& x, const Tensor& w, std::optional<Tensor> offs) {
  const char* who = "grouped_mm";
  const Storage storage = require_storage(x, who, "x");
  check_pair(x, w, who, "x", "w");
  const bool flat_x = x.dim() == 2, flat_w = w.dim() == 2;
  EDGEOPS_CHECK(
      (flat_x || x.dim() == 3) && (flat_w || w.dim() == 3), ValueError, who, "x and w must have 2 or 3 dimensions",
      shape_of(x) + " and " + shape_of(w), "Put the groups in the first dimension, or in offs.");
  EDGEOPS_CHECK(
      offs.has_value() == (flat_x || flat_w), ValueError, who,
      "offs must be given where x or w has 2 dimensions, and only there",
      shape_of(x) + " and " + shape_of(w) + (offs.has_value() ? " with offs" : " without offs"),
      "Pass the end of each group in the dimension that they share.");
  const int64_t m = x.size(flat_x ? 0 : 1), k = x.size(flat_x ? 1 : 2), n = w.size(flat_w ? 1 : 2);
  EDGEOPS_CHECK(
      k == w.size(flat_w ? 0 : 1), ValueError, who, "the columns of x must be the rows of w",
      shape_of(x) + " and " + shape_of(w), "Check whether w needs .mT.");
  const int64_t count = !flat_x ? x.size(0) : !flat_w ? w.size(0) : offs->numel();
  EDGEOPS_CHECK(
      (flat_w || w.size(0) == count) && (!offs.has_value() || offs->numel() == count), ValueError, who,
      "x, w and offs must have one number of groups",
      shape_of(x) + " and " + shape_of(w) + (offs.has_value() ? " with offs of " + shape_of(*offs) : std::string()),
      "Pass one matrix and one end for each group.");
  const auto ends = offs.has_value() ? read_ends(*offs, flat_x ? (flat_w ? k : m) : n, who) : std::vector<int64_t>();
  Tensor out = flat_x != flat_w ? new_output(x, {m, n}) : new_output(x, {count, m, n});
  const auto size = static_cast<int64_t>(x.element_size());
  const auto *px = static_cast<const char*>(x.const_data_ptr()), *pw = static_cast<const char*>(w.const_data_ptr());
  auto* po = static_cast<char*>(out.mutable_data_ptr());
  const int64_t x_row = x.stride(flat_x ? 0 : 1), x_col = x.stride(flat_x ? 1 : 2);
  const int64_t w_row = w.stride(flat_w ? 0 : 1), w_col = w.stride(flat_w ? 1 : 2);
  std::vector<GemmGroup> groups;
  groups.reserve(static_cast<size_t>(count));
  for (int64_t g = 0; g < count; ++g) {
    const int64_t first = ends.empty() ? 0 : ends[g], length = ends.empty() ? 0 : ends[g + 1] - first;
    Matrix left{px, m, k, x_row, x_col}, right{pw, k, n, w_row, w_col};
    char* c = po;
    if (!flat_x) {
      advance(left, g * x.stride(0) * size);
    }
    if (!flat_w) {
      advance(right, g * w.stride(0) * size);
    }
    if (flat_x && flat_w) {  // groups of the inner dimension
      advance(left, first * x_col * size);
      advance(right, first * w_row * size);
      left.cols = right.rows = length;
    } else if (flat_x) {  // of the rows
      advance(left, first * x_row * size);
      left.rows = length;
      c += first * n * size;
    } else if (flat_w) {  // of the columns
      advance(right, first * w_col * size);
      right.cols = length;
      c += first * size;
    }
    if (flat_x == flat_w) {
      c += g * m * n * size;
    }
    groups.push_back(group_of(left, right, c, n));
  }
  if (flat_x != flat_w) {  // what lies behind the last group
    const int64_t end = ends.back();
    if (flat_x) {
      clear(po + end * n * size, 1, (m - end) * n * size, 0);
    } else {
      clear(po + end * size, m, (n - end) * size, n * size);
    }
  }
  multiply(groups, storage);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_vgemm", TORCH_BOX(&vgemm_cpu));
  m.impl("_vgemm_packed", TORCH_BOX(&vgemm_packed_cpu));
  m.impl("_grouped_mm", TORCH_BOX(&grouped_mm_cpu));
}

}  // namespace edgeops::ragged
