// SPDX-License-Identifier: Apache-2.0
// Argument checks whose messages have four parts: who, the rule, what was received, what to do.
//
// The Python side finds the marker "edgeops:<Kind>|" in the text of the RuntimeError that torch makes of it, and raises
// <Kind> (TypeError, ValueError, NotImplementedError) with the text behind the marker.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace edgeops {

[[noreturn]] inline void fail(
    const char* kind, const char* who, const std::string& rule, const std::string& got, const std::string& advice) {
  throw std::runtime_error(
      std::string("edgeops:") + kind + "|" + who + ": " + rule + "; got " + got + ". " + advice + "\n");
}

inline std::string shape_of(const torch::stable::Tensor& t) {
  std::ostringstream s;
  s << "shape (";
  for (int64_t d = 0; d < t.dim(); ++d) {
    s << (d ? ", " : "") << t.size(d);
  }
  s << (t.dim() == 1 ? ",)" : ")");
  return s.str();
}

inline std::string dtype_of(const torch::stable::Tensor& t) {
  return torch::headeronly::toString(t.scalar_type());
}

// None reaches a kernel as an undefined tensor.
inline void require_tensor(const torch::stable::Tensor& t, const char* who, const char* name) {
  if (!t.defined()) {
    fail("TypeError", who, std::string(name) + " must be a tensor", "None", "Pass it.");
  }
}

}  // namespace edgeops

// The message parts are evaluated only when the condition fails.
#define EDGEOPS_CHECK(cond, kind, who, rule, got, advice)     \
  do {                                                        \
    if (!(cond)) {                                            \
      ::edgeops::fail(#kind, (who), (rule), (got), (advice)); \
    }                                                         \
  } while (0)
