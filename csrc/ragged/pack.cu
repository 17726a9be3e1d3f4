// SPDX-License-Identifier: Apache-2.0
// pack and unpack as plain row copies: bytes in the widest unit that pointers and strides allow, whatever the dtype.
//
//   pack:    packed[offsets[n] + i] = padded[n][i]                 i < length of n
//   unpack:  padded[n][i] = packed[offsets[n] + i] or the fill     i < length of the padded rows
#include "pack_cuda.h"

#include <cstring>

#include <cuda_runtime.h>

namespace edgeops::ragged {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kUnitsPerBlock = 4096;

// Offsets are clamped to the rows that exist: a wrong offset may give wrong numbers, never a wrong address.
template <typename Offset>
__device__ void segment(const RowCopy& c, int64_t n, int64_t& start, int64_t& count) {
  const auto* offsets = static_cast<const Offset*>(c.offsets);
  const int64_t first = static_cast<int64_t>(offsets[n]), last = static_cast<int64_t>(offsets[n + 1]);
  start = first < 0 ? 0 : (first > c.total ? c.total : first);
  const int64_t end = last < start ? start : (last > c.total ? c.total : last);
  count = end - start < c.length ? end - start : c.length;
}

template <typename Unit, typename Offset, bool kUnpack>
__global__ void __launch_bounds__(kThreads) copy_rows(
    const RowCopy c, const Unit fill, const unsigned units, const unsigned rows_per_block, const unsigned blocks) {
  const int64_t n = blockIdx.x / blocks;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x % blocks) * rows_per_block;
  int64_t start, count;
  segment<Offset>(c, n, start, count);
  const int64_t rows_left = (kUnpack ? c.length : count) - first_row;
  const unsigned rows =
      rows_left < 0 ? 0u : static_cast<unsigned>(rows_left < rows_per_block ? rows_left : rows_per_block);

  const char* source = static_cast<const char*>(c.source);
  char* target = static_cast<char*>(c.target);
  const int64_t padded = n * c.padded_stride_sequence + first_row * c.padded_stride_row;
  const int64_t packed = (start + first_row) * c.packed_stride_row;
  source += kUnpack ? packed : padded;
  target += kUnpack ? padded : packed;
  const int64_t source_row = kUnpack ? c.packed_stride_row : c.padded_stride_row;
  const int64_t target_row = kUnpack ? c.padded_stride_row : c.packed_stride_row;

  for (unsigned i = threadIdx.x; i < rows * units; i += kThreads) {
    const unsigned row = i / units, unit = i - row * units;
    Unit value = fill;
    if (!kUnpack || first_row + row < count) {
      value = reinterpret_cast<const Unit*>(source + row * source_row)[unit];
    }
    reinterpret_cast<Unit*>(target + row * target_row)[unit] = value;
  }
}

template <typename Unit, bool kUnpack>
const char* launch(const RowCopy& c, cudaStream_t stream) {
  const int64_t units = c.row_bytes / static_cast<int64_t>(sizeof(Unit));
  if (units >= (int64_t{1} << 31)) {
    return "a row is too wide";
  }
  const int64_t wanted = kUnitsPerBlock / units;
  const int64_t rows = wanted < 1 ? 1 : (wanted < c.length ? wanted : c.length);
  const int64_t blocks = (c.length + rows - 1) / rows;
  const int64_t grid = blocks * c.num_sequences;
  if (grid >= (int64_t{1} << 31)) {
    return "the batch needs more than 2^31 blocks";
  }
  Unit fill;
  std::memcpy(&fill, c.fill, sizeof(Unit));
  const auto run = c.wide_offsets ? copy_rows<Unit, int64_t, kUnpack> : copy_rows<Unit, int32_t, kUnpack>;
  run<<<static_cast<unsigned>(grid), kThreads, 0, stream>>>(
      c, fill, static_cast<unsigned>(units), static_cast<unsigned>(rows), static_cast<unsigned>(blocks));
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <bool kUnpack>
const char* launch_widest(const RowCopy& c, void* stream) {
  if (c.num_sequences == 0 || c.length == 0 || c.row_bytes == 0 || (c.total == 0 && !kUnpack)) {
    return nullptr;
  }
  const uint64_t all =
      reinterpret_cast<uint64_t>(c.source) | reinterpret_cast<uint64_t>(c.target) |
      static_cast<uint64_t>(c.row_bytes | c.padded_stride_sequence | c.padded_stride_row | c.packed_stride_row);
  const auto s = static_cast<cudaStream_t>(stream);
  if (all % 16 == 0) {
    return launch<uint4, kUnpack>(c, s);
  }
  if (all % 8 == 0) {
    return launch<uint2, kUnpack>(c, s);
  }
  if (all % 4 == 0) {
    return launch<unsigned, kUnpack>(c, s);
  }
  if (all % 2 == 0) {
    return launch<unsigned short, kUnpack>(c, s);
  }
  return launch<unsigned char, kUnpack>(c, s);
}

}  // namespace

const char* launch_pack(const RowCopy& copy, void* stream) {
  return launch_widest<false>(copy, stream);
}

const char* launch_unpack(const RowCopy& copy, void* stream) {
  return launch_widest<true>(copy, stream);
}

}  // namespace edgeops::ragged
