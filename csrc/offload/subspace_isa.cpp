// SPDX-License-Identifier: Apache-2.0
// The kernels of sparse projectors for every instruction set.
#include "../common/room.h"
#include "../common/simd.h"
#include "subspace.h"

namespace edgeops::offload {

#define EDGEOPS_INNER "../offload/subspace.inl.h"
#define EDGEOPS_TABLE                                                                  \
  extern const SubspaceKernels kSubspace[4] = {                                        \
      {project_block<StoreF32>, expand_block<StoreF32>, value_grad_rows<StoreF32>},    \
      {project_block<StoreF64>, expand_block<StoreF64>, value_grad_rows<StoreF64>},    \
      {project_block<StoreF16>, expand_block<StoreF16>, value_grad_rows<StoreF16>},    \
      {project_block<StoreBf16>, expand_block<StoreBf16>, value_grad_rows<StoreBf16>}, \
  };
#include "../common/each_isa.inl.h"

const SubspaceKernels& subspace_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kSubspace)[static_cast<int>(storage)];
}

}  // namespace edgeops::offload
