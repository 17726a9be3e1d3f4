// SPDX-License-Identifier: Apache-2.0
// Recording and placement for Python: arrays in, arrays out.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "arrays.h"
#include "bind.h"
#include "cell_type.h"
#include "digest.h"
#include "recording.h"

namespace edgeops::batching {
namespace {

namespace py = pybind11;

py::tuple graph_of(const Recording& r) {
  std::vector<const Variant*> variants;
  auto graph = std::make_shared<Graph>(r.recorder.graph(variants));
  py::list ids;
  for (const Variant* v : variants) {
    ids.append(v->id);
  }
  return py::make_tuple(graph, ids);
}

py::dict place(
    Recording& r, const py::array_t<int32_t, py::array::c_style>& order,
    const py::array_t<int64_t, py::array::c_style>& start) {
  Schedule s;
  s.order.assign(order.data(), order.data() + order.size());
  s.start.assign(start.data(), start.data() + start.size());
  Placement p = r.recorder.place(s);
  py::list variants;
  for (const Variant* v : p.variants) {
    variants.append(v->id);
  }
  py::dict out;
  out["variants"] = variants;
  out["total"] = p.total;
  out["largest"] = p.largest;
  out["used"] = p.used;
  out["records"] = array_of(std::move(p.records), true);
  out["offset"] = array_of(std::move(p.offset), true);
  out["type"] = array_of(std::move(p.type), true);
  out["rows"] = array_of(std::move(p.rows), true);
  out["numbers"] = array_of(std::move(p.numbers), true);
  out["tensors"] = array_of(std::move(p.tensors), true);
  out["starts"] = array_of(std::move(p.starts), true);
  out["makers"] = array_of(std::move(p.makers), true);
  return out;
}

// Where values stand that have been flushed: (rows, class, the batches that made them). Checks that they are values of
// this recording and of one class: raises ValueError with the index and what is wrong.
py::tuple locate(const Recording& r, const py::sequence& values, const py::object& session) {
  std::vector<int64_t> rows;
  std::vector<int32_t> makers;
  std::vector<uint8_t> seen;
  rows.reserve(values.size());
  int32_t value_class = -1;
  const py::ssize_t count = static_cast<py::ssize_t>(values.size());
  for (py::ssize_t i = 0; i < count; ++i) {
    const py::object item = values[i];
    if (!is_value(item.ptr()) || reinterpret_cast<const ValueObject*>(item.ptr())->recorder != session.ptr()) {
      throw py::value_error("foreign " + std::to_string(i));
    }
    const auto* v = reinterpret_cast<const ValueObject*>(item.ptr());
    if (i > 0 && v->value_class != value_class) {
      throw py::value_error("class " + std::to_string(i));
    }
    value_class = v->value_class;
    rows.push_back(r.recorder.row_of(v->id));
    const int32_t maker = r.recorder.batch_of(v->id);
    if (maker >= static_cast<int32_t>(seen.size())) {
      seen.resize(maker + 1, 0);
    }
    if (!seen[maker]) {
      seen[maker] = 1;
      makers.push_back(maker);
    }
  }
  return py::make_tuple(array_of(std::move(rows), true), value_class, py::tuple(py::cast(makers)));
}

}  // namespace

void bind_record(py::module_& m) {
  add_cell_types(m);
  py::class_<Recording>(m, "Recording", py::dynamic_attr(), "What a session has recorded.")
      .def(py::init<>())
      .def("graph", graph_of, "(graph, variant of each type) of the calls since the last flush.")
      .def("place", place, "The batches of a schedule as arrays (`Placement` in record.h); ends the flush.")
      .def("locate", locate, "(table rows, class, batches) of values that have been flushed.")
      .def("cell", [](const Recording& r, int32_t variant) { return r.cells[variant]; })
      .def(
          "signature",
          [](const Recording&, int32_t variant) {
            const Variant& v = variant_at(variant);
            py::list operands;
            for (size_t i = 0; i < v.operands.size(); ++i) {
              operands.append(py::make_tuple(static_cast<int>(v.operands[i]), v.in_classes[i]));
            }
            return operands;
          },
          "(kind, class) of every operand of a variant.")
      .def(
          "merge_early", [](Recording& r, bool early) { r.recorder.merge_early(early); },
          "Whether equal calls are merged while they are recorded, not only when they are placed.")
      .def_property_readonly("pending", [](const Recording& r) { return r.recorder.pending(); })
      .def_property_readonly("flushed", [](const Recording& r) { return r.recorder.flushed(); })
      .def(
          "keep_depths", [](Recording& r, bool program, bool hoist) { r.recorder.depths().keep({program, hoist}); },
          "How depths of calls are counted; see depth.h.")
      .def("enter_phase", [](Recording& r, int32_t phase) { return r.recorder.depths().enter(phase); })
      .def("leave_phase", [](Recording& r, int64_t before) { r.recorder.depths().leave(before); })
      .def_property(
          "step", [](Recording& r) { return r.recorder.depths().step(); },
          [](Recording& r, int32_t step) { r.recorder.depths().set_step(step); },
          "Depth that the next call of the program takes at least, where a program's calls count up.")
      .def_property(
          "phase", [](Recording& r) { return r.recorder.depths().phase(); },
          [](Recording& r, int32_t phase) { r.recorder.depths().set_phase(phase); }, "Phase of the next call.");
  m.def(
      "set_current",
      [](const py::object& session, Recording* recording) {
        set_current(session.is_none() ? nullptr : session.ptr(), recording);
      },
      "Sends calls of cells on this thread to the recording of a session, or to nothing.");
  m.def(
      "digest",
      [](const std::vector<std::pair<uintptr_t, int64_t>>& blocks) {
        uint64_t all = 0;
        for (const auto& [address, bytes] : blocks) {
          all = all * 31 + digest(reinterpret_cast<const void*>(address), bytes);
        }
        return all;
      },
      "A digest of blocks of memory, (address, bytes) of each: all of small ones, an eighth of those over 256 KiB.");
  m.def("current", [] {
    PyObject* now = current_session();
    return now == nullptr ? py::object(py::none()) : py::reinterpret_borrow<py::object>(now);
  });
}

}  // namespace edgeops::batching
