// SPDX-License-Identifier: Apache-2.0
// The kernels of STRSAGA for every instruction set.
#include "../common/room.h"
#include "../common/simd.h"
#include "strsaga.h"

namespace edgeops::drift {

#define EDGEOPS_INNER "../drift/strsaga.inl.h"
#define EDGEOPS_TABLE                         \
  extern const StrsagaKernels kStrsaga[2] = { \
      {run_turn<float>},                      \
      {run_turn<double>},                     \
  };
#include "../common/each_isa.inl.h"

const StrsagaKernels& strsaga_kernels(Isa isa, Storage storage) {
  return EDGEOPS_PICK(isa, kStrsaga)[static_cast<int>(storage)];
}

}  // namespace edgeops::drift
