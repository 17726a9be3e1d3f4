// SPDX-License-Identifier: Apache-2.0
// Reads and checks the arguments that forward and backward of ragged attention share.
#pragma once

#include <optional>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "attention.h"

namespace edgeops::ragged {

struct AttentionArguments {
  std::vector<int64_t> starts_q, starts_k;  // what call.cu_q and call.cu_k point at
  torch::stable::Tensor q, k, v;            // last dimension dense
  std::optional<torch::stable::Tensor> bias;
  AttentionCall call{};  // out and lse are not set
  Storage storage{};
};

AttentionArguments read_attention(
    const torch::stable::Tensor& q, const torch::stable::Tensor& k, const torch::stable::Tensor& v,
    const torch::stable::Tensor& cu_q, const torch::stable::Tensor& cu_k, std::optional<torch::stable::Tensor> bias,
    double scale, bool causal, int64_t window_left, int64_t window_right, double dropout_p,
    const std::optional<torch::stable::Tensor>& seed);

// x with its last dimension dense, copied only if it must be.
torch::stable::Tensor dense_rows(const torch::stable::Tensor& x);

}  // namespace edgeops::ragged
