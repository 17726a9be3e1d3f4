// SPDX-License-Identifier: Apache-2.0
// The kernels of the update for every instruction set.
#include "../common/room.h"
#include "../common/simd.h"
#include "subspace.h"

namespace edgeops::offload {

#define EDGEOPS_INNER "../offload/update.inl.h"
#define EDGEOPS_TABLE                                \
  extern const UpdateKernels kUpdate[4] = {          \
      {apply_rows<StoreF32>, adam_span<StoreF32>},   \
      {apply_rows<StoreF64>, adam_span<StoreF64>},   \
      {apply_rows<StoreF16>, adam_span<StoreF16>},   \
      {apply_rows<StoreBf16>, adam_span<StoreBf16>}, \
  };
#include "../common/each_isa.inl.h"

const UpdateKernels& update_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kUpdate)[static_cast<int>(storage)];
}

}  // namespace edgeops::offload
