// SPDX-License-Identifier: Apache-2.0
// Convolution along packed sequences, as the op (conv.cpp) sees it.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::ragged {

// One group of channels in compute type (float or double). Row r of the result is the sum over taps k of
// x[source[r * taps + k], :] times the weight of that tap; a negative source is a row of zeros.
struct ConvForward {
  const void* x;       // its row 0, first channel of the group
  int64_t x_row;       // elements between rows; channels are dense
  const void* zeros;   // `in` zeros
  const void* panels;  // weights of the group, packed by pack_weight
  const void* bias;    // of the group, or null
  void* out;           // its row 0, first channel of the group
  int64_t out_row;
  const int64_t* source;  // [rows, taps]
  int64_t in, out_channels, taps;
};

// dw[k][o][c] += sum over rows r of grad[r, o] * x[source[r * taps + k], c], for a range of taps and of o
struct ConvWeightGrad {
  const void *grad, *x;
  int64_t grad_row, x_row;
  const int64_t* source;
  int64_t rows, in, out_channels, taps;
  void* dw;  // [taps, out_channels, in] of the group, dense
};

struct ConvKernels {
  int64_t tile_cols;
  // panels[p][k][c][j] = weight[p * tile_cols + j, c, k]; weight [out, in, taps] of one group, dense
  void (*pack_weight)(const void* weight, int64_t out, int64_t in, int64_t taps, void* panels);
  void (*forward)(const ConvForward&, int64_t begin, int64_t end);
  void (*weight_grad)(const ConvWeightGrad&, int64_t tap, int64_t o_begin, int64_t o_end, void* scratch);
  int64_t (*weight_scratch)(const ConvWeightGrad&);
  void (*widen)(const void* from, void* to, int64_t n);
  void (*narrow)(const void* from, void* to, int64_t n);
};

constexpr int64_t kConvRows = 96;  // rows of a piece, a multiple of the rows of a tile
constexpr int64_t kConvOut = 192;  // output channels of a piece of the weight gradient, another multiple

const ConvKernels& conv_kernels(Isa isa, Storage storage);

}  // namespace edgeops::ragged
