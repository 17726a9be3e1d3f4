// SPDX-License-Identifier: Apache-2.0
// Which instruction set the inner loops run with, decided once from the CPU and the variable EDGEOPS_ISA.
#pragma once

namespace edgeops {

enum class Isa : int { base = 0, avx2 = 1, avx512 = 2 };

// The chosen one. Throws (ValueError marker) when EDGEOPS_ISA names one that is unknown or that this CPU lacks.
Isa active_isa();

// Widest one that this CPU has among those compiled in.
Isa best_isa();

const char* isa_name(Isa isa);

// Picks from a table {base, avx2, avx512}.
template <class F>
F* pick_isa(F* base, F* avx2, F* avx512) {
  switch (active_isa()) {
    case Isa::avx512:
      return avx512;
    case Isa::avx2:
      return avx2;
    default:
      return base;
  }
}

}  // namespace edgeops
