// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>

#include "bind.h"
#include "schedule.h"

namespace edgeops::batching {
namespace {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Result = std::pair<py::array_t<int32_t>, py::array_t<int64_t>>;

template <class T>
std::vector<T> copied(const Array<T>& array) {
  return {array.data(), array.data() + array.size()};
}

// The vector's own memory as a read-only array.
template <class T>
py::array_t<T> given(std::vector<T>&& values) {
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  const py::capsule free(owner.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  const auto* held = owner.release();
  py::array_t<T> out(static_cast<py::ssize_t>(held->size()), held->data(), free);
  py::detail::array_proxy(out.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return out;
}

[[noreturn]] void refuse(const std::string& rule, const std::string& got, const std::string& advice) {
  throw py::value_error("Graph: " + rule + "; got " + got + ". " + advice);
}

void check(const Graph& graph) {
  const int64_t nodes = graph.nodes(), edges = static_cast<int64_t>(graph.args.size());
  if (static_cast<int64_t>(graph.arg_start.size()) != nodes + 1 || graph.arg_start[0] != 0 ||
      graph.arg_start[nodes] != edges) {
    refuse(
        "arg_start must have nodes + 1 entries, from 0 to the number of arguments",
        std::to_string(graph.arg_start.size()) + " entries for " + std::to_string(nodes) + " nodes and " +
            std::to_string(edges) + " arguments" +
            (graph.arg_start.empty() ? std::string()
                                     : ", from " + std::to_string(graph.arg_start.front()) + " to " +
                                           std::to_string(graph.arg_start.back())),
        "Node v reads args[arg_start[v]:arg_start[v + 1]].");
  }
  for (int64_t v = 0; v < nodes; ++v) {
    if (graph.type[v] < 0 || graph.type[v] >= graph.types) {
      refuse(
          "types must lie in 0.." + std::to_string(graph.types - 1),
          std::to_string(graph.type[v]) + " at node " + std::to_string(v), "Number the types from 0.");
    }
    if (graph.arg_start[v + 1] < graph.arg_start[v]) {
      refuse(
          "arg_start must not decrease",
          std::to_string(graph.arg_start[v + 1]) + " after " + std::to_string(graph.arg_start[v]) + " at node " +
              std::to_string(v),
          "Node v reads args[arg_start[v]:arg_start[v + 1]].");
    }
    if (graph.arg_start[v + 1] > edges) {
      refuse(
          "arg_start must stay within the arguments",
          std::to_string(graph.arg_start[v + 1]) + " of " + std::to_string(edges) + " at node " + std::to_string(v),
          "Node v reads args[arg_start[v]:arg_start[v + 1]].");
    }
    for (int64_t e = graph.arg_start[v]; e < graph.arg_start[v + 1]; ++e) {
      if (graph.args[e] < 0 || graph.args[e] >= v) {
        refuse(
            "arguments must be nodes before their consumer",
            "argument " + std::to_string(graph.args[e]) + " of node " + std::to_string(v),
            "Give nodes in topological order.");
      }
    }
  }
}

std::shared_ptr<Graph> make_graph(
    const Array<int32_t>& type, const Array<int64_t>& arg_start, const Array<int32_t>& args,
    const Array<uint8_t>& lone) {
  auto graph = std::make_shared<Graph>();
  graph->types = static_cast<int32_t>(lone.size());
  graph->type = copied(type);
  graph->arg_start = copied(arg_start);
  graph->args = copied(args);
  graph->lone = copied(lone);
  check(*graph);
  return graph;
}

template <class Plan>
Result scheduled(Plan&& plan) {
  Schedule schedule;
  {
    const py::gil_scoped_release release;
    schedule = plan();
  }
  return {given(std::move(schedule.order)), given(std::move(schedule.start))};
}

}  // namespace

void bind_schedule(py::module_& m) {
  py::class_<Graph, std::shared_ptr<Graph>>(m, "Graph", "Typed nodes and the nodes they read.")
      .def(
          py::init(&make_graph), py::arg("type").noconvert(), py::arg("arg_start").noconvert(),
          py::arg("args").noconvert(), py::arg("lone").noconvert())
      .def_property_readonly("nodes", &Graph::nodes)
      .def_readonly("types", &Graph::types)
      .def("lower_bound", &lower_bound, py::call_guard<py::gil_scoped_release>());
  m.def("schedule_depth", [](const Graph& graph) { return scheduled([&] { return schedule_depth(graph); }); });
  m.def("schedule_agenda", [](const Graph& graph, bool remaining) {
    return scheduled([&] { return schedule_agenda(graph, remaining); });
  });
  m.def(
      "schedule_sufficient", [](const Graph& graph) { return scheduled([&] { return schedule_sufficient(graph); }); });
}

}  // namespace edgeops::batching
