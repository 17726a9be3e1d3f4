// SPDX-License-Identifier: Apache-2.0
// _ragged_pack and _ragged_unpack on the CPU: rows are copied as bytes, padding is never read.
#include <cstring>

#include <torch/csrc/stable/library.h>

#include "../common/output.h"
#include "../common/partition.h"
#include "offsets.h"

namespace edgeops::ragged {
namespace {

using torch::stable::Tensor;

struct CopyPiece {
  int64_t seq;
  double cost;
};

// Bytes of x[i, j, ...] or, with from = 1, of x[i, ...]: all dimensions from `from` on.
int64_t row_bytes(const Tensor& x, int64_t from) {
  auto bytes = static_cast<int64_t>(x.element_size());
  for (int64_t d = from; d < x.dim(); ++d) {
    bytes *= x.size(d);
  }
  return bytes;
}

bool dense_from(const Tensor& x, int64_t from) {
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d >= from; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) {
      return false;
    }
    expected *= x.size(d);
  }
  return true;
}

void check_lengths(const std::vector<int64_t>& starts, int64_t columns, const char* who) {
  for (size_t b = 0; b + 1 < starts.size(); ++b) {
    EDGEOPS_CHECK(
        starts[b + 1] - starts[b] <= columns, ValueError, who,
        "sequences must fit the " + std::to_string(columns) + " columns of the padded tensor",
        "length " + std::to_string(starts[b + 1] - starts[b]) + " at " + std::to_string(b),
        "Raise the length, or build the layout from this batch.");
  }
}

std::vector<CopyPiece> copy_pieces(int64_t sequences, double bytes) {
  std::vector<CopyPiece> pieces;
  for (int64_t b = 0; b < sequences; ++b) {
    pieces.push_back({b, 20 + bytes / 8});
  }
  return pieces;
}

}  // namespace

Tensor ragged_pack_cpu(const Tensor& padded_in, const Tensor& offsets, int64_t total) {
  const char* who = "pack";
  require_tensor(padded_in, who, "padded");
  EDGEOPS_CHECK(
      padded_in.dim() >= 2, ValueError, who, "padded must have shape [B, L, ...]", shape_of(padded_in),
      "Add the dimension of sequences with unsqueeze.");
  const auto starts = read_offsets(offsets, total, who, "offsets");
  const auto sequences = static_cast<int64_t>(starts.size()) - 1;
  EDGEOPS_CHECK(
      sequences == padded_in.size(0), ValueError, who,
      "offsets must describe " + std::to_string(padded_in.size(0)) + " rows", std::to_string(sequences) + " sequences",
      "Build the layout from this batch.");
  check_lengths(starts, padded_in.size(1), who);
  Tensor out = new_rows(padded_in, {total}, 2);
  const Tensor padded = dense_from(padded_in, 2) ? padded_in : torch::stable::contiguous(padded_in);
  const int64_t bytes = row_bytes(padded, 2), size = static_cast<int64_t>(padded.element_size());
  const int64_t row = padded.stride(1) * size, sequence = padded.stride(0) * size;
  const auto* src = static_cast<const char*>(padded.const_data_ptr());
  auto* dst = static_cast<char*>(out.mutable_data_ptr());
  auto pieces = copy_pieces(sequences, static_cast<double>(bytes * total) / static_cast<double>(1 + sequences));
  run_by_cost(pieces, [&](const CopyPiece& piece) {
    const int64_t first = starts[piece.seq], count = starts[piece.seq + 1] - first;
    if (count * bytes == 0) {
      return;  // an empty tensor has no memory to copy from or to
    }
    const char* from = src + piece.seq * sequence;
    if (row == bytes) {
      std::memcpy(dst + first * bytes, from, static_cast<size_t>(count * bytes));
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(dst + (first + i) * bytes, from + i * row, static_cast<size_t>(bytes));
    }
  });
  return out;
}

Tensor ragged_unpack_cpu(const Tensor& values_in, const Tensor& offsets, int64_t length, double padding_value) {
  const char* who = "unpack";
  require_tensor(values_in, who, "values");
  EDGEOPS_CHECK(
      values_in.dim() >= 1, ValueError, who, "values must have shape [T, ...]", shape_of(values_in),
      "Pass the packed tensor.");
  const auto starts = read_offsets(offsets, values_in.size(0), who, "offsets");
  const auto sequences = static_cast<int64_t>(starts.size()) - 1;
  check_lengths(starts, length, who);
  Tensor out = new_rows(values_in, {sequences, length}, 1);
  const Tensor values = dense_from(values_in, 1) ? values_in : torch::stable::contiguous(values_in);
  const bool zero = padding_value == 0;
  if (!zero) {
    torch::stable::fill_(out, padding_value);
  }
  const int64_t bytes = row_bytes(values, 1);
  const int64_t row = values.stride(0) * static_cast<int64_t>(values.element_size());
  const auto* src = static_cast<const char*>(values.const_data_ptr());
  auto* dst = static_cast<char*>(out.mutable_data_ptr());
  auto pieces = copy_pieces(sequences, static_cast<double>(bytes * length));
  run_by_cost(pieces, [&](const CopyPiece& piece) {
    const int64_t first = starts[piece.seq], count = starts[piece.seq + 1] - first;
    if (length * bytes == 0) {
      return;  // an empty tensor has no memory to copy from or to
    }
    char* to = dst + piece.seq * length * bytes;
    if (count > 0 && row == bytes) {
      std::memcpy(to, src + first * bytes, static_cast<size_t>(count * bytes));
    } else {
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(to + i * bytes, src + (first + i) * row, static_cast<size_t>(bytes));
      }
    }
    if (zero) {
      std::memset(to + count * bytes, 0, static_cast<size_t>((length - count) * bytes));
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_ragged_pack", TORCH_BOX(&ragged_pack_cpu));
  m.impl("_ragged_unpack", TORCH_BOX(&ragged_unpack_cpu));
}

}  // namespace edgeops::ragged
