// SPDX-License-Identifier: Apache-2.0
// _ragged_conv1d_fwd and _ragged_conv1d_bwd_weight on the CPU: every sequence is convolved alone, with zeros around it.
#include "conv.h"

#include <cstdlib>
#include <cstring>
#include <memory>

#include <torch/csrc/stable/library.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "../common/room.h"
#include "offsets.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

constexpr const char* kWho = "ragged_conv1d";

struct ConvPiece {
  int64_t group, tap, begin, end;
  double cost;
};

// Rows in compute type, channels dense: the tensor's own memory, or a widened copy.
struct Rows {
  const void* data;
  int64_t row;
  Tensor keep;
  Room room;
};

Rows compute_rows(const Tensor& x, Storage storage, const ConvKernels& kernels) {
  if (storage == Storage::f32 || storage == Storage::f64) {
    const Tensor kept = x.size(1) <= 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
    return {kept.const_data_ptr(), kept.stride(0), kept, nullptr};
  }
  const Tensor kept = dense(x);
  Room room = room_of(kept.numel() * 4);
  kernels.widen(kept.const_data_ptr(), room.get(), kept.numel());
  const void* data = room.get();
  return {data, kept.size(1), kept, std::move(room)};
}

// source[r][k] = row of x under tap k of result row r, or -1 outside its sequence. `starts` are those of x.
std::vector<int64_t> sources(
    const std::vector<int64_t>& starts, int64_t taps, int64_t pad_left, int64_t dilation, int64_t grown) {
  std::vector<int64_t> source;
  source.reserve(static_cast<size_t>(std::max<int64_t>(starts.back() * taps, 0)));
  for (size_t b = 0; b + 1 < starts.size(); ++b) {
    const int64_t length = starts[b + 1] - starts[b];
    for (int64_t t = 0; t < length + grown; ++t) {
      for (int64_t k = 0; k < taps; ++k) {
        const int64_t at = t + k * dilation - pad_left;
        source.push_back(at < 0 || at >= length ? -1 : starts[b] + at);
      }
    }
  }
  return source;
}

void check_lengths(const std::vector<int64_t>& starts, int64_t grown) {
  for (size_t b = 0; b + 1 < starts.size(); ++b) {
    const int64_t length = starts[b + 1] - starts[b];
    EDGEOPS_CHECK(
        length + grown >= 0, ValueError, kWho,
        "every sequence must have at least " + std::to_string(-grown) + " rows for this kernel size and padding",
        std::to_string(length) + " rows in sequence " + std::to_string(b), "Pad more, or leave such sequences out.");
  }
}

void check_numbers(int64_t taps, int64_t dilation, int64_t groups, int64_t pad_left, int64_t pad_right) {
  constexpr int64_t most = 1LL << 31;
  EDGEOPS_CHECK(
      dilation >= 1 && dilation < most, ValueError, kWho, "dilation must be at least 1", std::to_string(dilation),
      "Pass 1 for neighbouring taps.");
  EDGEOPS_CHECK(
      groups >= 1 && groups < most, ValueError, kWho, "groups must be at least 1", std::to_string(groups),
      "Pass 1 for a plain convolution.");
  EDGEOPS_CHECK(
      taps >= 1 && taps < most, ValueError, kWho, "weight must have at least one tap", std::to_string(taps),
      "Its shape is [C_out, C_in per group, K].");
  EDGEOPS_CHECK(
      pad_left < most && pad_right < most && -pad_left < most * most && -pad_right < most * most, ValueError, kWho,
      "padding must be below 2^31", std::to_string(std::max(pad_left, pad_right)), "Pad less.");
}

bool is_half(Storage storage) {
  return storage == Storage::f16 || storage == Storage::bf16;
}

}  // namespace

Tensor ragged_conv1d_fwd_cpu(
    const Tensor& x, const Tensor& offsets, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
    int64_t pad_left, int64_t pad_right, int64_t dilation, int64_t groups) {
  const Storage storage = require_storage(x, kWho, "x");
  require_tensor(weight_in, kWho, "weight");
  EDGEOPS_CHECK(x.dim() == 2, ValueError, kWho, "x must have shape [T, C_in]", shape_of(x), "Flatten it.");
  EDGEOPS_CHECK(
      weight_in.dim() == 3 && weight_in.scalar_type() == x.scalar_type() && weight_in.is_cpu(), ValueError, kWho,
      "weight must have shape [C_out, C_in per group, K] and the dtype and device of x",
      shape_of(weight_in) + ", " + dtype_of(weight_in), "As in torch.nn.functional.conv1d.");
  const int64_t width = x.size(1), out_width = weight_in.size(0), in = weight_in.size(1), taps = weight_in.size(2);
  check_numbers(taps, dilation, groups, pad_left, pad_right);
  EDGEOPS_CHECK(
      out_width % groups == 0 && in * groups == width, ValueError, kWho,
      "weight must have shape [C_out, C_in per group, K] with C_in = " + std::to_string(width) +
          " and C_out a multiple" + " of groups = " + std::to_string(groups),
      shape_of(weight_in), "As in torch.nn.functional.conv1d.");
  if (bias_in.has_value()) {
    EDGEOPS_CHECK(
        bias_in->dim() == 1 && bias_in->size(0) == out_width && bias_in->scalar_type() == x.scalar_type() &&
            bias_in->is_cpu(),
        ValueError, kWho,
        "bias must have shape [C_out] with C_out = " + std::to_string(out_width) + " and the dtype and device of x",
        shape_of(*bias_in) + ", " + dtype_of(*bias_in), "Pass None for none.");
  }
  const auto starts = read_offsets(offsets, x.size(0), kWho, "offsets");
  const auto count = static_cast<int64_t>(starts.size()) - 1;
  const int64_t grown = pad_left + pad_right - dilation * (taps - 1);
  check_lengths(starts, grown);
  const int64_t rows = x.size(0) + count * grown;
  Tensor out = new_output(x, {rows, out_width});
  if (rows == 0 || out_width == 0) {
    return out;
  }
  const auto& kernels = conv_kernels(active_isa(), storage);
  const int64_t bytes = storage == Storage::f64 ? 8 : 4, group_out = out_width / groups;
  const Rows from = compute_rows(x, storage, kernels);
  const Tensor weight = dense(weight_in);
  Room wide_weight, wide_bias, sums;
  const void* w = weight.const_data_ptr();
  std::optional<Tensor> bias;
  const void* add = nullptr;
  if (bias_in.has_value()) {
    bias = dense(*bias_in);
    add = bias->const_data_ptr();
  }
  if (is_half(storage)) {
    wide_weight = room_of(weight.numel() * bytes);
    kernels.widen(w, wide_weight.get(), weight.numel());
    w = wide_weight.get();
    sums = room_of(rows * out_width * bytes);
    if (add != nullptr) {
      wide_bias = room_of(out_width * bytes);
      kernels.widen(add, wide_bias.get(), out_width);
      add = wide_bias.get();
    }
  }
  char* target = static_cast<char*>(sums ? sums.get() : out.mutable_data_ptr());
  if (in == 0) {
    std::memset(target, 0, static_cast<size_t>(rows * out_width * bytes));
  }
  const int64_t panel = (group_out + kernels.tile_cols - 1) / kernels.tile_cols * kernels.tile_cols * in * taps;
  const Room panels = room_of(groups * panel * bytes), zeros = room_of(in * bytes);
  std::memset(zeros.get(), 0, static_cast<size_t>(in * bytes));
  for (int64_t g = 0; g < groups; ++g) {
    kernels.pack_weight(
        static_cast<const char*>(w) + g * group_out * in * taps * bytes, group_out, in, taps,
        static_cast<char*>(panels.get()) + g * panel * bytes);
  }
  const auto source = sources(starts, taps, pad_left, dilation, grown);
  std::vector<ConvPiece> pieces;
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < rows; r += kConvRows) {
      const int64_t end = std::min(r + kConvRows, rows);
      pieces.push_back({g, 0, r, end, 50 + static_cast<double>((end - r) * group_out * in * taps) / 30});
    }
  }
  run_by_cost(pieces, [&](const ConvPiece& piece) {
    const int64_t g = piece.group;
    const ConvForward call{
        static_cast<const char*>(from.data) + g * in * bytes,
        from.row,
        zeros.get(),
        static_cast<const char*>(panels.get()) + g * panel * bytes,
        add == nullptr ? nullptr : static_cast<const char*>(add) + g * group_out * bytes,
        target + g * group_out * bytes,
        out_width,
        source.data(),
        in,
        group_out,
        taps};
    kernels.forward(call, piece.begin, piece.end);
  });
  if (sums) {
    kernels.narrow(sums.get(), out.mutable_data_ptr(), rows * out_width);
  }
  return out;
}

Tensor ragged_conv1d_bwd_weight_cpu(
    const Tensor& grad_out, const Tensor& x, const Tensor& offsets, int64_t taps, int64_t pad_left, int64_t pad_right,
    int64_t dilation, int64_t groups) {
  const Storage storage = require_storage(x, kWho, "x");
  require_tensor(grad_out, kWho, "grad_out");
  EDGEOPS_CHECK(x.dim() == 2, ValueError, kWho, "x must have shape [T, C_in]", shape_of(x), "Flatten it.");
  check_numbers(taps, dilation, groups, pad_left, pad_right);
  const auto starts = read_offsets(offsets, x.size(0), kWho, "offsets");
  const int64_t grown = pad_left + pad_right - dilation * (taps - 1);
  check_lengths(starts, grown);
  const int64_t rows = x.size(0) + (static_cast<int64_t>(starts.size()) - 1) * grown;
  EDGEOPS_CHECK(
      grad_out.dim() == 2 && grad_out.size(0) == rows && grad_out.scalar_type() == x.scalar_type() &&
          grad_out.size(1) % groups == 0 && x.size(1) % groups == 0,
      ValueError, kWho, "grad_out must have shape [" + std::to_string(rows) + ", C_out] and the dtype of x",
      shape_of(grad_out) + ", " + dtype_of(grad_out), "It is the gradient of the result.");
  const int64_t in = x.size(1) / groups, out_width = grad_out.size(1), group_out = out_width / groups;
  Tensor out = new_output(x, {out_width, in, taps});
  if (out_width == 0 || in == 0) {
    return out;
  }
  const auto& kernels = conv_kernels(active_isa(), storage);
  const int64_t bytes = storage == Storage::f64 ? 8 : 4;
  const Rows from = compute_rows(x, storage, kernels), grad = compute_rows(grad_out, storage, kernels);
  const auto source = sources(starts, taps, pad_left, dilation, grown);
  const Room sums = room_of(out_width * in * taps * bytes);  // [groups, taps, out, in]
  std::vector<ConvPiece> pieces;
  const double cost = static_cast<double>(rows * in) / 30;
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t k = 0; k < taps; ++k) {
      for (int64_t o = 0; o < group_out; o += kConvOut) {
        const int64_t end = std::min(o + kConvOut, group_out);
        pieces.push_back({g, k, o, end, 50 + cost * static_cast<double>(end - o)});
      }
    }
  }
  const auto call_of = [&](int64_t g) {
    return ConvWeightGrad{
        static_cast<const char*>(grad.data) + g * group_out * bytes,
        static_cast<const char*>(from.data) + g * in * bytes,
        grad.row,
        from.row,
        source.data(),
        rows,
        in,
        group_out,
        taps,
        static_cast<char*>(sums.get()) + g * group_out * in * taps * bytes};
  };
  run_by_cost(pieces, [&](const ConvPiece& piece) {
    const ConvWeightGrad call = call_of(piece.group);
    const Room scratch = room_of(kernels.weight_scratch(call));
    kernels.weight_grad(call, piece.tap, piece.begin, piece.end, scratch.get());
  });
  // [groups, taps, out, in] to [groups * out, in, taps]
  const Room turned = room_of(is_half(storage) ? out_width * in * taps * bytes : 0);
  void* target = is_half(storage) ? turned.get() : out.mutable_data_ptr();
  const auto turn = [&](auto zero) {
    using T = decltype(zero);
    const T* s = static_cast<const T*>(sums.get());
    T* t = static_cast<T*>(target);
    for (int64_t o = 0; o < out_width; ++o) {
      const T* base = s + (o / group_out * taps * group_out + o % group_out) * in;
      for (int64_t c = 0; c < in; ++c) {
        for (int64_t k = 0; k < taps; ++k) {
          *t++ = base[k * group_out * in + c];
        }
      }
    }
  };
  storage == Storage::f64 ? turn(0.0) : turn(0.0f);
  if (is_half(storage)) {
    kernels.narrow(target, out.mutable_data_ptr(), out_width * in * taps);
  }
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_ragged_conv1d_fwd", TORCH_BOX(&ragged_conv1d_fwd_cpu));
  m.impl("_ragged_conv1d_bwd_weight", TORCH_BOX(&ragged_conv1d_bwd_weight_cpu));
}

}  // namespace edgeops::ragged
