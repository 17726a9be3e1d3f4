// SPDX-License-Identifier: Apache-2.0
// _ragged_pool_bwd on the CPU: the gradient of each sequence's row, spread over its rows.
#include <algorithm>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "offsets.h"
#include "rows_bwd.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

// Rows [first, last) of a sequence; an extreme or logsumexp needs them all at once.
struct SpreadPiece {
  int64_t seq, first, last;
  double cost;
};

constexpr int64_t kSpreadRows = 256;

void check_segments(const Tensor& t, const Tensor& x, int64_t segments, const char* who, const char* name) {
  require_tensor(t, who, name);
  EDGEOPS_CHECK(
      t.scalar_type() == x.scalar_type(), TypeError, who,
      std::string(name) + " must have the dtype of x, " + dtype_of(x), dtype_of(t), "Cast it with .to(x.dtype).");
  EDGEOPS_CHECK(
      t.dim() == 2 && t.size(0) == segments && t.size(1) == x.size(1) && t.is_cpu(), ValueError, who,
      std::string(name) + " must have one row a sequence, [" + std::to_string(segments) + ", " +
          std::to_string(x.size(1)) + "], on x's device",
      shape_of(t), "Pass what belongs to the forward op's result.");
}

}  // namespace

Tensor ragged_pool_bwd_cpu(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& out_in, const Tensor& offsets, int64_t mode) {
  const char* who = "ragged_pool";
  const Storage storage = require_storage(x_in, who, "x");
  EDGEOPS_CHECK(x_in.dim() == 2, ValueError, who, "x must have shape [T, C]", shape_of(x_in), "Flatten it.");
  EDGEOPS_CHECK(
      mode >= 0 && mode <= 4, ValueError, who, "mode must be 0 (sum), 1 (mean), 2 (max), 3 (min) or 4 (logsumexp)",
      std::to_string(mode), "Use edgeops.ragged.ragged_pool with a name.");
  const auto starts = read_offsets(offsets, x_in.size(0), who, "offsets");
  const int64_t segments = static_cast<int64_t>(starts.size()) - 1, width = x_in.size(1);
  check_segments(grad_in, x_in, segments, who, "grad_out");
  const bool whole = mode >= 2;
  if (whole) {
    check_segments(out_in, x_in, segments, who, "out");
  }
  const Tensor grad = dense(grad_in), out = whole ? dense(out_in) : out_in;
  const Tensor x = !whole || width <= 1 || x_in.stride(1) == 1 ? x_in : torch::stable::contiguous(x_in);
  const int64_t ld = x.stride(0), size = static_cast<int64_t>(x.element_size());
  Tensor dx = new_output(x, {x.size(0), width});
  const auto* up = static_cast<const char*>(grad.const_data_ptr());
  auto* dst = static_cast<char*>(dx.mutable_data_ptr());
  const auto& kernels = row_backward_kernels(active_isa(), storage);
  std::vector<SpreadPiece> pieces;
  for (int64_t b = 0; b < segments && width > 0; ++b) {
    const int64_t step = whole ? std::max<int64_t>(starts[b + 1] - starts[b], 1) : kSpreadRows;
    for (int64_t first = starts[b]; first < starts[b + 1]; first += step) {
      const int64_t last = std::min(first + step, starts[b + 1]);
      pieces.push_back({b, first, last, 20 + (whole ? 0.5 : 0.2) * static_cast<double>((last - first) * width)});
    }
  }
  run_by_cost(pieces, [&](const SpreadPiece& piece) {
    const char* row = up + piece.seq * width * size;
    char* target = dst + piece.first * width * size;
    if (whole) {
      kernels.pool_shared(
          row, static_cast<const char*>(x.const_data_ptr()) + piece.first * ld * size, ld,
          static_cast<const char*>(out.const_data_ptr()) + piece.seq * width * size, piece.last - piece.first, width,
          mode == 4, target);
    } else {
      kernels.pool(row, piece.last - piece.first, starts[piece.seq + 1] - starts[piece.seq], width, mode, target);
    }
  });
  return dx;
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_ragged_pool_bwd", TORCH_BOX(&ragged_pool_bwd_cpu));
}

}  // namespace edgeops::ragged
