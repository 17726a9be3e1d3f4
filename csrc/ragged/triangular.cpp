// SPDX-License-Identifier: Apache-2.0
// _trmm_fwd, _trmm_bwd_l and _tri_binary on the CPU. CoRa, MLSys 2022, sections 5 and 7.1.
#include "triangular.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <torch/csrc/stable/library.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "../common/room.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

constexpr int64_t kStrip = 1024;             // columns of one piece: its packed block of B stays below 1 MiB
constexpr int64_t kStreamBytes = 4LL << 20;  // results beyond this leave the caches before anybody reads them
constexpr int64_t kFreshBytes = 32LL << 20;  // the C library takes blocks beyond this from the system every time
constexpr double kNsPerMultiply = 1.0 / 30;  // one core, float

void require_square(const Tensor& l, const char* who, const char* name) {
  EDGEOPS_CHECK(
      l.dim() == 2 && l.size(0) == l.size(1), ValueError, who, std::string(name) + " must be square, [M, M]",
      shape_of(l), "Pass the whole matrix; only its triangle is read.");
}

void require_same(const Tensor& x, const Tensor& y, const char* who, const char* name, const char* other) {
  EDGEOPS_CHECK(
      x.scalar_type() == y.scalar_type(), TypeError, who, std::string(name) + " must have the dtype of " + other,
      dtype_of(x) + " beside " + dtype_of(y), "Cast one of them.");
  EDGEOPS_CHECK(
      x.is_cpu() == y.is_cpu(), ValueError, who, std::string(name) + " must be on the device of " + other,
      "another device", "Move it.");
}

// A matrix in compute type with its strides: the tensor itself, or a dense widened copy.
struct Matrix {
  const void* data;
  int64_t row, col;
  Room room;
};

Matrix compute_matrix(const Tensor& x, Storage storage, const TriKernels& kernels) {
  if (storage == Storage::f32 || storage == Storage::f64) {
    return {x.const_data_ptr(), x.stride(0), x.stride(1), nullptr};
  }
  const Tensor flat = dense(x);
  const int64_t count = flat.numel();
  Room room = room_of(count * 4);
  kernels.widen(flat.const_data_ptr(), room.get(), count);
  const void* data = room.get();
  return {data, flat.size(1), 1, std::move(room)};
}

int64_t round_to(int64_t x, int64_t to) {
  return (x + to - 1) / to * to;
}

// Pieces of C: strips of columns, and with several threads bands of rows of about one cost.
std::vector<TriPiece> pieces_of(const TriProduct& call, int64_t tile_cols, bool wide) {
  const double work = static_cast<double>(call.rows) * static_cast<double>(call.cols) *
                      static_cast<double>(call.depth) * kNsPerMultiply * (wide ? 1 : 0.5);
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t strips = (call.cols + kStrip - 1) / kStrip;
  const int64_t strip = round_to((call.cols + strips - 1) / strips, tile_cols);
  int64_t bands = 1;
  if (threads > 1 && work > 40e3) {
    bands = std::min<int64_t>((4 * threads + strips - 1) / strips, (call.rows + 47) / 48);
  }
  const bool growing = call.ragged != Ragged::upper;
  std::vector<TriPiece> pieces;
  int64_t i0 = 0;
  for (int64_t s = 1; s <= bands && i0 < call.rows; ++s) {
    const double share = static_cast<double>(s) / static_cast<double>(bands);
    const double at = growing ? std::sqrt(share) : 1 - std::sqrt(1 - share);
    int64_t i1 = round_to(static_cast<int64_t>(at * static_cast<double>(call.rows)), kTriRows);
    i1 = s == bands ? call.rows : std::min(i1, call.rows);
    if (i1 <= i0) {
      continue;
    }
    for (int64_t j0 = 0; j0 < call.cols; j0 += strip) {
      pieces.push_back({i0, i1, j0, std::min(j0 + strip, call.cols), work / static_cast<double>(bands * strips)});
    }
    i0 = i1;
  }
  return pieces;
}

void run_product(const TriProduct& call, const TriKernels& kernels, bool wide) {
  auto pieces = pieces_of(call, kernels.tile_cols, wide);
  run_by_cost(pieces, [&](const TriPiece& piece) {
    const Room scratch = room_of(kernels.scratch(call, piece));
    kernels.product(call, piece, static_cast<char*>(scratch.get()));
  });
}

// [size, size] of zeros whose pages exist once they are written. The base pointer is moved up to a cache line.
Tensor zeros_untouched(const Tensor& like, int64_t size, int64_t bytes) {
  void* base = std::calloc(static_cast<size_t>(bytes) + 64, 1);
  if (base == nullptr) {
    throw std::bad_alloc();
  }
  void* data = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(base) + 63) / 64 * 64);
  const int64_t shape[2] = {size, size}, strides[2] = {size, 1};
  return torch::stable::from_blob(
      data, {shape, 2}, {strides, 2}, like.device(), like.scalar_type(), [base](void*) { std::free(base); });
}

bool is_half(Storage storage) {
  return storage == Storage::f16 || storage == Storage::bf16;
}

}  // namespace

Tensor trmm_fwd_cpu(const Tensor& l, const Tensor& b, bool upper, bool transpose, double alpha) {
  const char* who = "trmm";
  const Storage storage = require_storage(l, who, "l");
  require_tensor(b, who, "b");
  require_square(l, who, "l");
  require_same(b, l, who, "b", "l");
  EDGEOPS_CHECK(
      b.dim() == 2 && b.size(0) == l.size(0), ValueError, who,
      "b must have shape [M, N] with M = " + std::to_string(l.size(0)), shape_of(b), "It needs a row per column of l.");
  const int64_t size = l.size(0), cols = b.size(1);
  Tensor out = new_output(b, {size, cols});
  if (size == 0 || cols == 0) {
    return out;
  }
  const bool half = is_half(storage), wide = storage == Storage::f64;
  const auto& kernels = tri_kernels(active_isa(), storage);
  const int64_t bytes = wide ? 8 : 4;
  const Matrix left = compute_matrix(l, storage, kernels), right = compute_matrix(b, storage, kernels);
  const Room sums = half ? room_of(size * cols * bytes) : nullptr;
  TriProduct call{
      left.data,
      right.data,
      half ? sums.get() : out.mutable_data_ptr(),
      transpose ? left.col : left.row,
      transpose ? left.row : left.col,
      right.row,
      right.col,
      cols,
      size,
      cols,
      size,
      alpha,
      Ragged::reduction};
  if (upper != transpose) {
    // an upper triangle is a lower one with rows and columns counted from the end
    const int64_t last = size - 1;
    call.a = static_cast<const char*>(call.a) + last * (call.a_row + call.a_col) * bytes;
    call.b = static_cast<const char*>(call.b) + last * call.b_row * bytes;
    call.c = static_cast<char*>(call.c) + last * call.c_row * bytes;
    call.a_row = -call.a_row;
    call.a_col = -call.a_col;
    call.b_row = -call.b_row;
    call.c_row = -call.c_row;
  }
  run_product(call, kernels, wide);
  if (half) {
    kernels.narrow(sums.get(), out.mutable_data_ptr(), size * cols);
  }
  return out;
}

Tensor trmm_bwd_l_cpu(const Tensor& grad_out, const Tensor& b, bool upper, double alpha) {
  const char* who = "trmm";
  const Storage storage = require_storage(grad_out, who, "grad_out");
  require_tensor(b, who, "b");
  require_same(b, grad_out, who, "b", "grad_out");
  EDGEOPS_CHECK(
      grad_out.dim() == 2 && b.dim() == 2 && grad_out.size(0) == b.size(0) && grad_out.size(1) == b.size(1), ValueError,
      who, "grad_out and b must both be [M, N]", shape_of(grad_out) + " and " + shape_of(b),
      "grad_out is the gradient of the result.");
  const int64_t size = b.size(0), depth = b.size(1);
  Tensor out = new_output(b, {size, size});
  if (size == 0) {
    return out;
  }
  const bool half = is_half(storage), wide = storage == Storage::f64;
  const auto& kernels = tri_kernels(active_isa(), storage);
  const int64_t bytes = wide ? 8 : 4;
  const Matrix left = compute_matrix(grad_out, storage, kernels), right = compute_matrix(b, storage, kernels);
  const Room sums = half ? room_of(size * size * bytes) : nullptr;
  char* target = static_cast<char*>(half ? sums.get() : out.mutable_data_ptr());
  for (int64_t i = 0; i < size; ++i) {
    const int64_t from = depth == 0 || upper ? 0 : i + 1, to = depth == 0 || !upper ? size : i;
    std::memset(target + (i * size + from) * bytes, 0, static_cast<size_t>((to - from) * bytes));
  }
  if (depth > 0) {
    const TriProduct call{
        left.data,
        right.data,
        target,
        left.row,
        left.col,
        right.col,
        right.row,
        size,
        size,
        size,
        depth,
        alpha,
        upper ? Ragged::upper : Ragged::lower};
    run_product(call, kernels, wide);
  }
  if (half) {
    kernels.narrow(sums.get(), out.mutable_data_ptr(), size * size);
  }
  return out;
}

Tensor tri_binary_cpu(const Tensor& l1_in, const Tensor& l2_in, bool multiply, bool upper) {
  const char* who = multiply ? "trmul" : "tradd";
  const Storage storage = require_storage(l1_in, who, "l1");
  require_tensor(l2_in, who, "l2");
  require_square(l1_in, who, "l1");
  require_square(l2_in, who, "l2");
  require_same(l2_in, l1_in, who, "l2", "l1");
  const int64_t size = l1_in.size(0);
  EDGEOPS_CHECK(
      l2_in.size(0) == size, ValueError, who, "l1 and l2 must have one shape",
      shape_of(l1_in) + " and " + shape_of(l2_in), "Nothing is broadcast here; expand it first.");
  const Tensor l1 = size <= 1 || l1_in.stride(1) == 1 ? l1_in : torch::stable::contiguous(l1_in);
  const Tensor l2 = size <= 1 || l2_in.stride(1) == 1 ? l2_in : torch::stable::contiguous(l2_in);
  const int64_t bytes = size * size * static_cast<int64_t>(l1.element_size());
  // Memory this large comes fresh from the system, page by page as it is touched, and full of zeros.
  const bool zeroed = bytes > kFreshBytes;
  Tensor out = zeroed ? zeros_untouched(l1, size, bytes) : new_output(l1, {size, size});
  const auto& kernels = tri_kernels(active_isa(), storage);
  const bool stream = bytes >= kStreamBytes;
  std::vector<TriPiece> pieces;
  const int64_t band = std::max<int64_t>(1, std::min<int64_t>(size, (64 << 10) / std::max<int64_t>(size, 1)));
  for (int64_t i = 0; i < size; i += band) {
    pieces.push_back({i, std::min(i + band, size), 0, size, 0.3 * static_cast<double>(band * size)});
  }
  run_by_cost(pieces, [&](const TriPiece& piece) {
    kernels.binary(
        l1.const_data_ptr(), l1.stride(0), l2.const_data_ptr(), l2.stride(0), out.mutable_data_ptr(), piece.i0,
        piece.i1, size, multiply, upper, stream, zeroed);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_trmm_fwd", TORCH_BOX(&trmm_fwd_cpu));
  m.impl("_trmm_bwd_l", TORCH_BOX(&trmm_bwd_l_cpu));
  m.impl("_tri_binary", TORCH_BOX(&tri_binary_cpu));
}

}  // namespace edgeops::ragged
