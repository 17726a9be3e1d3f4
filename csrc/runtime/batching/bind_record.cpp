// SPDX-License-Identifier: Apache-2.0
// Recording and placement for Python: arrays in, arrays out.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bind.h"
#include "cell_type.h"
#include "recording.h"

namespace edgeops::batching {
namespace {

namespace py = pybind11;

// An array that takes over the vector's memory.
template <class T>
py::array_t<T> array_of(std::vector<T>&& values) {
  auto* held = new std::vector<T>(std::move(values));
  py::capsule owner(held, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(static_cast<py::ssize_t>(held->size()), held->data(), owner);
}

py::tuple graph_of(const Recording& r) {
  std::vector<const Variant*> variants;
  Graph g = r.recorder.graph(variants);
  py::list ids;
  for (const Variant* v : variants) {
    ids.append(v->id);
  }
  return py::make_tuple(
      array_of(std::move(g.type)), array_of(std::move(g.arg_start)), array_of(std::move(g.args)),
      array_of(std::move(g.lone)), ids);
}

py::tuple batch_tuple(const PlacedBatch& b) {
  py::tuple operands(b.operand_at.size());
  for (size_t i = 0; i < b.operand_at.size(); ++i) {
    operands[i] = py::make_tuple(
        static_cast<int>(b.variant->operands[i]), b.variant->in_classes[i], b.operand_at[i], b.operand_count[i],
        b.first_row[i], b.starts_at[i]);
  }
  py::tuple outs(b.out_row.size());
  for (size_t i = 0; i < b.out_row.size(); ++i) {
    outs[i] = py::make_tuple(b.variant->out_classes[i], b.out_row[i]);
  }
  return py::make_tuple(b.variant->id, b.count, operands, outs);
}

py::tuple place(
    Recording& r, const py::array_t<int32_t, py::array::c_style>& order,
    const py::array_t<int64_t, py::array::c_style>& start) {
  Schedule s;
  s.order.assign(order.data(), order.data() + order.size());
  s.start.assign(start.data(), start.data() + start.size());
  Placement p = r.recorder.place(s);
  py::list batches(p.batches.size());
  for (size_t i = 0; i < p.batches.size(); ++i) {
    batches[i] = batch_tuple(p.batches[i]);
  }
  return py::make_tuple(
      batches, array_of(std::move(p.rows)), array_of(std::move(p.numbers)), array_of(std::move(p.tensors)),
      array_of(std::move(p.starts)), p.used);
}

py::array_t<int32_t> rows_of(const Recording& r, const py::sequence& values) {
  std::vector<int32_t> rows;
  rows.reserve(values.size());
  for (const py::handle v : values) {
    rows.push_back(r.recorder.row_of(reinterpret_cast<const ValueObject*>(v.ptr())->id));
  }
  return array_of(std::move(rows));
}

}  // namespace

void bind_record(py::module_& m) {
  add_cell_types(m);
  py::class_<Recording>(m, "Recording", py::dynamic_attr(), "What a session has recorded.")
      .def(py::init<>())
      .def("graph", graph_of, "(type, arg_start, args, lone, variant of each type) of the calls since the last flush.")
      .def("place", place, "Table rows for a schedule's results, and the operand rows of its batches; ends the flush.")
      .def("rows", rows_of, "Table rows of values, -1 before their flush.")
      .def("cell", [](const Recording& r, int32_t variant) { return r.cells[variant]; })
      .def_property_readonly("nodes", [](const Recording& r) { return r.recorder.nodes(); })
      .def_property_readonly("pending", [](const Recording& r) { return r.recorder.pending(); });
  m.def(
      "set_current",
      [](const py::object& recording) {
        set_current(recording.is_none() ? nullptr : recording.ptr(),
                    recording.is_none() ? nullptr : recording.cast<Recording*>());
      },
      "Sends calls of cells on this thread to a recording, or to nothing.");
  m.def("current", [] {
    PyObject* now = current_recording();
    return now == nullptr ? py::object(py::none()) : py::reinterpret_borrow<py::object>(now);
  });
}

}  // namespace edgeops::batching
