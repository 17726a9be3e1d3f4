// SPDX-License-Identifier: Apache-2.0
// Products whose left side is rows of tables, as the ops (linear.cpp) and the inner loops (linear.inl.h) see them.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/isa.h"
#include "../common/storage.h"

namespace edgeops::batching {

// Rows of a table by number; nullptr in place of numbers stands for 0, 1, 2, ... Strides count elements.
struct Operand {
  const void* table;
  int64_t stride;
  const int32_t* rows;
  int64_t width;
};

// Columns of a packed weight lie in panels of 64 bytes: 16 float32 or 8 float64, whatever the instruction set.
constexpr int64_t kPanelBytes = 64;

// out[m, n] = [operands] weight + bias, added to what is there with `on`. The weight is packed, the bias reaches to the
// end of the last panel.
struct Linear {
  int64_t m, n, k;
  const Operand* operands;
  int64_t count;
  const void* weight;
  const void* bias;
  void* out;
  int64_t out_row;
  bool on = false;
};

// dweight[n, k] += grad^T [operands], dbias[n] += the sums of the columns of grad.
struct WeightGrad {
  int64_t m, n, k;
  const void* grad;
  int64_t grad_row;
  const Operand* operands;
  int64_t count;
  void* dweight;
  int64_t dweight_row;
  void* dbias;
  bool fresh = false;  // dweight holds nothing yet: it is written, not added to
};

// One unit of work: rows [i0, i1) of the result and panels [p0, p1) of its columns.
struct LinearPiece {
  int64_t i0, i1, p0, p1;
  double cost;  // nanoseconds, roughly
};

using Scratch = char* (*)(int slot, int64_t bytes);

struct LinearKernels {
  void (*linear)(const Linear&, const LinearPiece&, Scratch);
  void (*wgrad)(const WeightGrad&, const LinearPiece&, Scratch);
  // Panels [p0, p1) of a weight [n, k] with any strides, widened to the compute type; panels lie `next` elements apart.
  void (*pack)(
      const void* w, int64_t n, int64_t k, int64_t row, int64_t col, int64_t p0, int64_t p1, void* panels,
      int64_t next);
  void (*widen)(const void* src, int64_t n, void* dst);
};

const LinearKernels& linear_kernels(Isa isa, Storage storage);

// Columns of a panel, and panels of so many columns.
int64_t panel_width(Storage storage);
int64_t panels_of(int64_t columns, Storage storage);

// A weight [n, k] with any strides, or columns of one.
struct PackPart {
  const void* data;
  int64_t k, row, col;
};

// One whole product, or weights of n rows side by side into panels, by all threads.
void run_pack(const std::vector<PackPart>& parts, int64_t n, void* panels, Storage storage);
void run_linear(const Linear& call, Storage storage);
void run_wgrad(const WeightGrad& call, Storage storage);

}  // namespace edgeops::batching
