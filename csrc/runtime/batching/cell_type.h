// SPDX-License-Identifier: Apache-2.0
// The Python types of the recording path, on the C API: a call costs about a tenth of a microsecond.
#pragma once

#include <pybind11/pybind11.h>
#include <structmember.h>

#include <algorithm>

namespace edgeops::batching {

struct Recording;
struct Variant;

// A result that does not exist yet.
struct ValueObject {
  PyObject ob_base;
  PyObject* recorder;  // the Recording's Python object
  int64_t id;
  int32_t value_class;
};

// Makes the types `Value` and `Cell` and puts them into the module.
void add_cell_types(pybind11::module_& m);

// Calls of cells on this thread go to `recording`, which belongs to the session `session`; null for none. Values hold
// the session, and the session holds the recording: nothing holds a value back, so all of it goes with the last value.
void set_current(PyObject* session, Recording* recording);
PyObject* current_session();

bool is_value(PyObject* object);

// The signature of a number that a graph or a batch gave.
const Variant& variant_at(int32_t id);

}  // namespace edgeops::batching
