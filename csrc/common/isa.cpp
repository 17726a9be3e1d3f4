// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "check.h"

namespace edgeops {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "base";
  }
}

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return Isa::avx2;
  }
#endif
  return Isa::base;
}

namespace {

Isa choose() {
  const Isa best = best_isa();
  const char* wish = std::getenv("EDGEOPS_ISA");
  if (wish == nullptr || *wish == '\0') {
    return best;
  }
  for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(wish, isa_name(isa)) == 0) {
      EDGEOPS_CHECK(
          isa <= best, ValueError, "EDGEOPS_ISA", "must name an instruction set that this CPU has",
          std::string("'") + wish + "' where the best is '" + isa_name(best) + "'",
          "Unset it, or choose a narrower one.");
      return isa;
    }
  }
  fail(
      "ValueError", "EDGEOPS_ISA", "must be base, avx2 or avx512", std::string("'") + wish + "'",
      "Unset it to let edgeops choose.");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace edgeops

// Read by edgeops/_native.py through ctypes: the name of the active instruction set, or "!" and the error.
extern "C" __attribute__((visibility("default"))) const char* edgeops_cpu_isa() {
  static const std::string text = [] {
    try {
      return std::string(edgeops::isa_name(edgeops::active_isa()));
    } catch (const std::exception& error) {
      return std::string("!") + error.what();
    }
  }();
  return text.c_str();
}
