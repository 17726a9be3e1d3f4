// SPDX-License-Identifier: Apache-2.0
// The parts of edgeops._runtime.offload.
#pragma once

#include <pybind11/pybind11.h>

namespace edgeops::offload {

void bind_simulate(pybind11::module_& m);

}  // namespace edgeops::offload
