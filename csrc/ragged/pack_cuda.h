// SPDX-License-Identifier: Apache-2.0
// Launchers of pack.cu on raw pointers. No torch and no CUDA header here, so that both sides can include it.
#pragma once

#include <cstdint>

namespace edgeops::ragged {

// Rows between padded [N, length, row] and packed [total, row]. Sizes of rows and all strides are in bytes; a row is
// dense.
struct RowCopy {
  const void* source;
  void* target;
  const void* offsets;  // [N + 1] int32 or int64, on the device
  bool wide_offsets;    // int64
  int64_t num_sequences;
  int64_t length;
  int64_t total;
  int64_t row_bytes;
  int64_t padded_stride_sequence;
  int64_t padded_stride_row;
  int64_t packed_stride_row;
  unsigned char fill[16];  // the padding element, repeated; unpack only
};

// Each returns nullptr, or the text of the CUDA error. `stream` is a cudaStream_t.
const char* launch_pack(const RowCopy& copy, void* stream);
const char* launch_unpack(const RowCopy& copy, void* stream);

}  // namespace edgeops::ragged
