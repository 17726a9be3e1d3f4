// SPDX-License-Identifier: Apache-2.0
// The triangular kernels for every instruction set.
#include "../common/simd.h"
#include "triangular.h"

namespace edgeops::ragged {

#define EDGEOPS_INNER "../ragged/triangular.inl.h"
#define EDGEOPS_TRI(St, T) {tri_scratch<T>, tri_product<T>, Tile<T>::n, tri_binary<St>, tri_widen<St>, tri_narrow<St>}
#define EDGEOPS_TABLE                                                                            \
  extern const TriKernels kTri[4] = {                                                            \
      EDGEOPS_TRI(StoreF32, float), EDGEOPS_TRI(StoreF64, double), EDGEOPS_TRI(StoreF16, float), \
      EDGEOPS_TRI(StoreBf16, float)};
#include "../common/each_isa.inl.h"

const TriKernels& tri_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kTri)[static_cast<int>(storage)];
}

}  // namespace edgeops::ragged
