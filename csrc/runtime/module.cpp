// SPDX-License-Identifier: Apache-2.0
// edgeops._runtime: host-side structures without tensors. No torch header in this folder.
#include <pybind11/pybind11.h>

#include "batching/bind.h"
#include "offload/bind.h"

namespace py = pybind11;

PYBIND11_MODULE(_runtime, m) {
  m.doc() = "Host-side structures of edgeops: no tensors here.";
  m.def(
      "compiler", [] { return py::str("g++ " __VERSION__); },
      "The compiler that built the native modules, for `edgeops info`.");
  py::module_ batching = m.def_submodule("batching", "Graphs of cells: recording, scheduling, layout.");
  edgeops::batching::bind_schedule(batching);
  edgeops::batching::bind_layout(batching);
  edgeops::batching::bind_record(batching);
  py::module_ offload = m.def_submodule("offload", "Simulation of offloaded training.");
  edgeops::offload::bind_simulate(offload);
}
