// SPDX-License-Identifier: Apache-2.0
// The parts of edgeops._runtime.batching.
#pragma once

#include <pybind11/pybind11.h>

namespace edgeops::batching {

void bind_schedule(pybind11::module_& m);  // graphs, lower bounds, schedulers
void bind_layout(pybind11::module_& m);    // PQ trees, memory layout of static cells
void bind_record(pybind11::module_& m);    // recording of cells

}  // namespace edgeops::batching
