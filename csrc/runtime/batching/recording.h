// SPDX-License-Identifier: Apache-2.0
// A recorder and the Python cells that its calls belong to.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "record.h"

namespace edgeops::batching {

struct Recording {
  Recorder recorder;
  std::vector<pybind11::object> cells;  // by variant id, null where not used here

  void note(int32_t variant, PyObject* cell) {
    if (variant >= static_cast<int32_t>(cells.size())) {
      cells.resize(variant + 1);
    }
    if (!cells[variant]) {
      cells[variant] = pybind11::reinterpret_borrow<pybind11::object>(cell);
    }
  }
};

}  // namespace edgeops::batching
