// SPDX-License-Identifier: Apache-2.0
#include "cell_type.h"

#include <cstddef>
#include <deque>

#include "recording.h"

namespace edgeops::batching {

namespace {

PyTypeObject* value_type = nullptr;
thread_local PyObject* current_object = nullptr;  // the session, borrowed: its `with` block holds it
thread_local Recording* current = nullptr;

// ---- Value

void value_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  Py_XDECREF(reinterpret_cast<ValueObject*>(self)->recorder);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* new_value(PyObject* recorder, int64_t id, int32_t value_class) {
  auto* v = reinterpret_cast<ValueObject*>(value_type->tp_alloc(value_type, 0));
  if (v == nullptr) {
    return nullptr;
  }
  Py_INCREF(recorder);
  v->recorder = recorder;
  v->id = id;
  v->value_class = value_class;
  return &v->ob_base;
}

PyMemberDef value_members[] = {
    {"_session", T_OBJECT_EX, offsetof(ValueObject, recorder), READONLY, nullptr},
    {"_id", T_LONGLONG, offsetof(ValueObject, id), READONLY, nullptr},
    {"_class", T_INT, offsetof(ValueObject, value_class), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot value_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(value_dealloc)},
    {Py_tp_members, value_members},
    {Py_tp_doc, const_cast<char*>("A row of a cell's result that may not exist yet.")},
    {0, nullptr},
};

PyType_Spec value_spec = {
    "edgeops._runtime.batching.Value", sizeof(ValueObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    value_slots};

// ---- Cell

struct CellObject {
  PyObject ob_base;
  vectorcallfunc call;
  PyObject* owner;  // the Python cell: `_infer`, `_eager`, and what the executor wants
  std::vector<const Variant*>* variants;
  uint64_t recurrence;  // its bit, where it has a part that runs ahead
};

PyTypeObject* cell_type = nullptr;

// Signatures live as long as the process, like the types they stand for: batches and plans point at them.
std::deque<Variant>& all_variants() {
  static std::deque<Variant> variants;
  return variants;
}

constexpr Py_ssize_t kMostOperands = 64;

struct Reader {
  Operand kinds[kMostOperands];
  int32_t classes[kMostOperands];
  int64_t fixed[kMostOperands * 2];
  std::vector<int64_t> spilled;  // used when lists do not fit
  int64_t count = 0;

  void put(int64_t x) {
    if (spilled.empty() && count < kMostOperands * 2) {
      fixed[count++] = x;
      return;
    }
    if (spilled.empty()) {
      spilled.assign(fixed, fixed + count);
    }
    spilled.push_back(x);
    ++count;
  }
  const int64_t* data() const {
    return spilled.empty() ? fixed : spilled.data();
  }
};

bool read_value(PyObject* arg, int64_t& id, int32_t& value_class) {
  const auto* v = reinterpret_cast<ValueObject*>(arg);
  if (v->recorder != current_object) {
    PyErr_SetString(
        PyExc_ValueError,
        "batching.cell: operands must come from the running session; got a value of another session. "
        "Take it out of that session with value.tensor() first.");
    return false;
  }
  id = v->id;
  value_class = v->value_class;
  return true;
}

// Reads one operand of any kind.
bool read_operand(PyObject* arg, Py_ssize_t slot, Reader& in) {
  if (Py_TYPE(arg) == value_type) {
    int64_t id;
    in.kinds[slot] = Operand::value;
    if (!read_value(arg, id, in.classes[slot])) {
      return false;
    }
    in.put(id);
    return true;
  }
  if (PyLong_Check(arg)) {
    const long long number = PyLong_AsLongLong(arg);
    if (number == -1 && PyErr_Occurred()) {
      return false;
    }
    in.kinds[slot] = Operand::number;
    in.classes[slot] = -1;
    in.put(number);
    return true;
  }
  if (PyList_Check(arg) || PyTuple_Check(arg)) {
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(arg);
    PyObject** items = PySequence_Fast_ITEMS(arg);
    in.kinds[slot] = Operand::list;
    in.put(n);
    for (Py_ssize_t i = 0; i < n; ++i) {
      int64_t id;
      int32_t value_class;
      if (Py_TYPE(items[i]) != value_type) {
        PyErr_Format(
            PyExc_TypeError,
            "batching.cell: a list operand must hold results of cells; got %s at %zd. Give tensors one by one.",
            Py_TYPE(items[i])->tp_name, i);
        return false;
      }
      if (!read_value(items[i], id, value_class)) {
        return false;
      }
      if (i > 0 && value_class != in.classes[slot]) {
        PyErr_Format(
            PyExc_ValueError,
            "batching.cell: the values of a list operand must have one shape and dtype; got another one at %zd. "
            "Use two lists.",
            i);
        return false;
      }
      in.classes[slot] = value_class;
      in.put(id);
    }
    if (n == 0) {
      PyErr_SetString(
          PyExc_ValueError,
          "batching.cell: a list operand must not be empty; got []. Use a cell without that operand for this case.");
      return false;
    }
    return true;
  }
  PyObject* told = PyObject_CallMethod(current_object, "_on_tensor", "(O)", arg);
  if (told == nullptr) {
    return false;
  }
  int value_class;
  long long index;
  const bool good = PyArg_ParseTuple(told, "iL", &value_class, &index) != 0;
  Py_DECREF(told);
  if (good) {
    in.kinds[slot] = Operand::tensor;
    in.classes[slot] = value_class;
    in.put(index);
  }
  return good;
}

const Variant* variant_of(CellObject* self, Py_ssize_t count, const Reader& in);

// The two parts of a call, `(slot, cell of that operand, cell of the rest)`. See `Variant`.
bool infer_parts(CellObject* self, Py_ssize_t count, const Reader& in, PyObject* parts, Variant& v) {
  static int recurrences = 0;
  int slot;
  CellObject *first, *second;
  if (!PyArg_ParseTuple(parts, "iO!O!", &slot, cell_type, &first, cell_type, &second)) {
    return false;
  }
  const bool lists = std::find(in.kinds, in.kinds + count, Operand::list) != in.kinds + count;
  if (slot < 0 || slot >= count || lists || (in.kinds[slot] != Operand::value && in.kinds[slot] != Operand::tensor)) {
    return true;  // runs as it is
  }
  Reader one, rest;
  one.kinds[0] = in.kinds[slot];
  one.classes[0] = in.classes[slot];
  const Variant* ahead = variant_of(first, 1, one);
  if (ahead == nullptr) {
    return false;
  }
  std::copy(in.kinds, in.kinds + count, rest.kinds);
  std::copy(in.classes, in.classes + count, rest.classes);
  rest.kinds[slot] = Operand::value;
  rest.classes[slot] = ahead->out_classes[0];
  const Variant* after = variant_of(second, count, rest);
  if (after == nullptr) {
    return false;
  }
  if (self->recurrence == 0) {
    self->recurrence = uint64_t{1} << (recurrences++ % 64);
  }
  v.slot = slot;
  v.ahead = ahead;
  v.rest = after;
  v.recurrence = self->recurrence;
  all_variants()[ahead->id].merge = ahead->operands[0] == Operand::value && !ahead->lone;
  all_variants()[after->id].recurrence = self->recurrence;
  return true;
}

// A signature that this cell has not had yet: its Python side says what comes out.
const Variant* infer(CellObject* self, Py_ssize_t count, const Reader& in) {
  PyObject* kinds = PyTuple_New(count);
  for (Py_ssize_t i = 0; kinds != nullptr && i < count; ++i) {
    PyTuple_SET_ITEM(kinds, i, Py_BuildValue("(ii)", static_cast<int>(in.kinds[i]), in.classes[i]));
  }
  if (kinds == nullptr) {
    return nullptr;
  }
  PyObject* told = PyObject_CallMethod(self->owner, "_infer", "(N)", kinds);
  if (told == nullptr) {
    return nullptr;
  }
  PyObject *outs, *ahead;
  int lone, pure;
  if (!PyArg_ParseTuple(told, "O!ppO", &PyTuple_Type, &outs, &lone, &pure, &ahead)) {
    Py_DECREF(told);
    return nullptr;
  }
  auto& all = all_variants();
  Variant v;
  if (ahead != Py_None && !infer_parts(self, count, in, ahead, v)) {
    Py_DECREF(told);
    return nullptr;
  }
  v.id = static_cast<int32_t>(all.size());
  v.cell = self->owner;
  v.lone = lone != 0;
  // without a number equal calls are rare, and looking for them would cost more than it saves
  const auto some = [&](Operand kind) { return std::count(in.kinds, in.kinds + count, kind); };
  v.merge = pure != 0 && !v.lone && some(Operand::number) > 0 &&
            some(Operand::number) + some(Operand::value) == static_cast<std::ptrdiff_t>(count);
  v.operands.assign(in.kinds, in.kinds + count);
  v.in_classes.assign(in.classes, in.classes + count);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(outs); ++i) {
    v.out_classes.push_back(static_cast<int32_t>(PyLong_AsLong(PyTuple_GET_ITEM(outs, i))));
  }
  Py_DECREF(told);
  if (PyErr_Occurred()) {
    return nullptr;
  }
  all.push_back(std::move(v));
  self->variants->push_back(&all.back());
  return &all.back();
}

const Variant* variant_of(CellObject* self, Py_ssize_t count, const Reader& in) {
  for (const Variant* v : *self->variants) {
    if (static_cast<Py_ssize_t>(v->operands.size()) == count &&
        std::equal(in.kinds, in.kinds + count, v->operands.begin()) &&
        std::equal(in.classes, in.classes + count, v->in_classes.begin())) {
      return v;
    }
  }
  return infer(self, count, in);
}

PyObject* cell_call(PyObject* object, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  auto* self = reinterpret_cast<CellObject*>(object);
  const Py_ssize_t count = PyVectorcall_NARGS(nargsf);
  if (current == nullptr) {
    static PyObject* eager = PyUnicode_InternFromString("_eager");
    PyObject* run = PyObject_GetAttr(self->owner, eager);
    PyObject* result = run == nullptr ? nullptr : PyObject_Vectorcall(run, args, static_cast<size_t>(count), kwnames);
    Py_XDECREF(run);
    return result;
  }
  if (count > kMostOperands || (kwnames != nullptr && PyTuple_GET_SIZE(kwnames) > 0)) {
    PyErr_Format(
        PyExc_TypeError,
        "batching.cell: a cell takes at most %zd operands, all by position; got %zd and %s. Give them by position.",
        kMostOperands, count, kwnames != nullptr && PyTuple_GET_SIZE(kwnames) > 0 ? "keywords" : "no keywords");
    return nullptr;
  }
  Reader in;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!read_operand(args[i], i, in)) {
      return nullptr;
    }
  }
  const Variant* v = variant_of(self, count, in);
  if (v == nullptr) {
    return nullptr;
  }
  const int64_t* operands = in.data();
  int64_t parts[kMostOperands];
  int64_t first = 0;
  if (current->recorder.splits(*v, operands)) {
    const Variant* ahead = v->ahead;
    current->note(ahead->id, static_cast<PyObject*>(ahead->cell));
    first = current->recorder.append(*ahead, operands + v->slot, 1);
    std::copy(operands, operands + in.count, parts);
    parts[v->slot] = first;
    operands = parts;
    v = v->rest;
  }
  if (first >= 0) {
    current->note(v->id, static_cast<PyObject*>(v->cell));
    first = current->recorder.append(*v, operands, in.count);
  }
  if (first < 0) {
    return PyObject_CallMethod(current_object, "_on_later_phase", "L", static_cast<long long>(-1 - first));
  }
  const auto outs = static_cast<Py_ssize_t>(v->out_classes.size());
  if (outs == 1) {
    return new_value(current_object, first, v->out_classes[0]);
  }
  PyObject* results = PyTuple_New(outs);
  for (Py_ssize_t i = 0; results != nullptr && i < outs; ++i) {
    PyObject* value = new_value(current_object, first + i, v->out_classes[i]);
    if (value == nullptr) {
      Py_DECREF(results);
      return nullptr;
    }
    PyTuple_SET_ITEM(results, i, value);
  }
  return results;
}

int cell_init(PyObject* object, PyObject* args, PyObject*) {
  auto* self = reinterpret_cast<CellObject*>(object);
  PyObject* owner;
  if (!PyArg_ParseTuple(args, "O", &owner)) {
    return -1;
  }
  Py_INCREF(owner);
  Py_XSETREF(self->owner, owner);
  self->call = cell_call;
  if (self->variants == nullptr) {
    self->variants = new std::vector<const Variant*>();
  }
  return 0;
}

int cell_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(reinterpret_cast<CellObject*>(object)->owner);
  Py_VISIT(Py_TYPE(object));
  return 0;
}

int cell_clear(PyObject* object) {
  Py_CLEAR(reinterpret_cast<CellObject*>(object)->owner);
  return 0;
}

void cell_dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  PyTypeObject* type = Py_TYPE(object);
  cell_clear(object);
  delete reinterpret_cast<CellObject*>(object)->variants;
  type->tp_free(object);
  Py_DECREF(type);
}

// A copy is a cell of the copied owner. The owner is state, not an argument: it may hold the cell.
PyObject* cell_reduce(PyObject* object, PyObject*) {
  return Py_BuildValue("(O(O)O)", Py_TYPE(object), Py_None, reinterpret_cast<CellObject*>(object)->owner);
}

PyObject* cell_setstate(PyObject* object, PyObject* owner) {
  Py_INCREF(owner);
  Py_XSETREF(reinterpret_cast<CellObject*>(object)->owner, owner);
  Py_RETURN_NONE;
}

// What comes out of this cell is asked again: its parameters may have another dtype now.
PyObject* cell_forget(PyObject* object, PyObject*) {
  reinterpret_cast<CellObject*>(object)->variants->clear();
  Py_RETURN_NONE;
}

PyMethodDef cell_methods[] = {
    {"forget", cell_forget, METH_NOARGS, "Ask the owner again what comes out of calls."},
    {"__reduce__", cell_reduce, METH_NOARGS, nullptr},
    {"__setstate__", cell_setstate, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyMemberDef cell_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(CellObject, call), READONLY, nullptr},
    {"owner", T_OBJECT, offsetof(CellObject, owner), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot cell_slots[] = {
    {Py_tp_init, reinterpret_cast<void*>(cell_init)},
    {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
    {Py_tp_dealloc, reinterpret_cast<void*>(cell_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(cell_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(cell_clear)},
    {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
    {Py_tp_members, cell_members},
    {Py_tp_methods, cell_methods},
    {Py_tp_doc, const_cast<char*>("Records calls of a cell in the running session; runs them at once outside of one.")},
    {0, nullptr},
};

PyType_Spec cell_spec = {
    "edgeops._runtime.batching.Cell", sizeof(CellObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL, cell_slots};

}  // namespace

void set_current(PyObject* session, Recording* recording) {
  current_object = session;
  current = recording;
}

const Variant& variant_at(int32_t id) {
  return all_variants()[id];
}

bool is_value(PyObject* object) {
  return Py_TYPE(object) == value_type;
}

PyObject* current_session() {
  return current_object;
}

void add_cell_types(pybind11::module_& m) {
  value_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&value_spec));
  PyObject* cell = PyType_FromSpec(&cell_spec);
  if (value_type == nullptr || cell == nullptr) {
    throw pybind11::error_already_set();
  }
  m.add_object("Value", reinterpret_cast<PyObject*>(value_type));
  cell_type = reinterpret_cast<PyTypeObject*>(cell);
  m.add_object("Cell", pybind11::reinterpret_steal<pybind11::object>(cell));
}

}  // namespace edgeops::batching
