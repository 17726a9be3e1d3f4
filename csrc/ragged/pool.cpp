// SPDX-License-Identifier: Apache-2.0
// _ragged_pool_fwd on the CPU: one row for each sequence.
#include <torch/csrc/stable/library.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "offsets.h"
#include "rows.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

struct PoolPiece {
  int64_t seq;
  double cost;
};

}  // namespace

Tensor ragged_pool_fwd_cpu(const Tensor& x_in, const Tensor& offsets, int64_t mode) {
  const char* who = "ragged_pool";
  const Storage storage = require_storage(x_in, who, "x");
  EDGEOPS_CHECK(x_in.dim() == 2, ValueError, who, "x must have shape [T, C]", shape_of(x_in), "Flatten it.");
  EDGEOPS_CHECK(
      mode >= 0 && mode <= 4, ValueError, who, "mode must be 0 (sum), 1 (mean), 2 (max), 3 (min) or 4 (logsumexp)",
      std::to_string(mode), "Use edgeops.ragged.ragged_pool with a name.");
  const auto starts = read_offsets(offsets, x_in.size(0), who, "offsets");
  const int64_t width = x_in.size(1);
  const Tensor x = width <= 1 || x_in.stride(1) == 1 ? x_in : torch::stable::contiguous(x_in);
  const int64_t ld = x.stride(0);
  Tensor out = new_output(x, {static_cast<int64_t>(starts.size()) - 1, width});
  const auto size = static_cast<int64_t>(x.element_size());
  const auto* src = static_cast<const char*>(x.const_data_ptr());
  auto* dst = static_cast<char*>(out.mutable_data_ptr());
  const auto& kernels = row_kernels(active_isa(), storage);
  std::vector<PoolPiece> pieces;
  for (int64_t b = 0; b + 1 < static_cast<int64_t>(starts.size()); ++b) {
    pieces.push_back({b, 20 + 0.2 * static_cast<double>((starts[b + 1] - starts[b]) * width)});
  }
  run_by_cost(pieces, [&](const PoolPiece& piece) {
    const int64_t first = starts[piece.seq];
    kernels.pool(
        src + first * ld * size, ld, starts[piece.seq + 1] - first, width, mode, dst + piece.seq * width * size);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_ragged_pool_fwd", TORCH_BOX(&ragged_pool_fwd_cpu));
}

}  // namespace edgeops::ragged
