// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arrays.h"
#include "bind.h"
#include "coarsen.h"
#include "plan_cache.h"
#include "schedule.h"
#include "schedule_fsm.h"

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

// A member of a graph as a read-only array that keeps the graph alive.
template <class T>
py::array_t<T> seen(const std::shared_ptr<Graph>& graph, const std::vector<T>& values) {
  py::array_t<T> out(static_cast<py::ssize_t>(values.size()), values.data(), py::cast(graph));
  py::detail::array_proxy(out.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return out;
}

[[noreturn]] void refuse(const std::string& rule, const std::string& got, const std::string& advice) {
  throw py::value_error("Graph: " + rule + "; got " + got + ". " + advice);
}

// Phases and depths, where they are given, must agree with an edge.
void check_order(const Graph& graph, int64_t arg, int64_t node) {
  const auto found = [&](const std::vector<int32_t>& values) {
    return std::to_string(values[arg]) + " and " + std::to_string(values[node]) + " at argument " +
           std::to_string(arg) + " of node " + std::to_string(node);
  };
  const bool phased = !graph.phase.empty();
  if (phased && graph.phase[arg] > graph.phase[node]) {
    refuse("arguments must not be of a later phase", found(graph.phase), "Put the consumer into that phase.");
  }
  if (!graph.depth.empty() && !(phased && graph.phase[arg] < graph.phase[node]) &&
      graph.depth[arg] >= graph.depth[node]) {
    refuse("arguments of a phase must be less deep", found(graph.depth), "Count from the arguments up.");
  }
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
  for (const auto& [name, values] : {std::pair("depths", &graph.depth), std::pair("phases", &graph.phase)}) {
    if (!values->empty() && static_cast<int64_t>(values->size()) != nodes) {
      refuse(
          std::string(name) + " must have one entry a node",
          std::to_string(values->size()) + " entries for " + std::to_string(nodes) + " nodes", "Or leave them out.");
    }
  }
  for (int64_t v = 0; v < nodes; ++v) {
    if (graph.type[v] < 0 || graph.type[v] >= graph.types) {
      refuse(
          "types must lie in 0.." + std::to_string(graph.types - 1),
          std::to_string(graph.type[v]) + " at node " + std::to_string(v), "Number the types from 0.");
    }
    if ((!graph.phase.empty() && graph.phase[v] < 0) || (!graph.depth.empty() && graph.depth[v] < 0)) {
      refuse("depths and phases must not be negative", "one below 0 at node " + std::to_string(v), "Count from 0.");
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
      check_order(graph, graph.args[e], v);
    }
  }
}

std::shared_ptr<Graph> make_graph(
    const Array<int32_t>& type, const Array<int64_t>& arg_start, const Array<int32_t>& args, const Array<uint8_t>& lone,
    const Array<int32_t>& depth, const Array<int32_t>& phase) {
  auto graph = std::make_shared<Graph>();
  graph->types = static_cast<int32_t>(lone.size());
  graph->type = copied(type);
  graph->arg_start = copied(arg_start);
  graph->args = copied(args);
  graph->lone = copied(lone);
  graph->depth = copied(depth);
  graph->phase = copied(phase);
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
  return {array_of(std::move(schedule.order), false), array_of(std::move(schedule.start), false)};
}

Result phased(const Graph& graph, const std::function<Schedule(const Graph&)>& plan) {
  return scheduled([&] { return by_phase(graph, plan); });
}

using Keys = std::vector<std::string>;
using Table = std::vector<std::pair<State, int32_t>>;

Policy make_policy(int32_t kind, int32_t phases, Keys keys, const Table& table) {
  Policy policy{static_cast<StateKind>(kind), phases, std::move(keys), {}};
  policy.actions.insert(table.begin(), table.end());
  return policy;
}

// In the order of the states, so that equal policies are written equally.
Table table_of(const Policy& policy) {
  Table table(policy.actions.begin(), policy.actions.end());
  std::sort(table.begin(), table.end());
  return table;
}

std::vector<py::bytes> keys_of(const Policy& policy) {
  return {policy.keys.begin(), policy.keys.end()};
}

std::tuple<Policy, int32_t, int64_t> train(
    const Graph& graph, const Keys& keys, int32_t kind, int32_t phases, int32_t iterations, uint64_t seed) {
  const py::gil_scoped_release release;
  Training how;
  how.iterations = iterations;
  how.seed = seed;
  Trained trained = train_fsm(graph, keys, static_cast<StateKind>(kind), phases, how);
  return {std::move(trained.policy), trained.iterations, trained.batches};
}

std::tuple<py::array_t<int32_t>, py::array_t<int64_t>, int64_t> run_policy(
    const Graph& graph, const Keys& keys, const Policy& policy) {
  int64_t unseen = 0;
  auto [order, start] = phased(graph, [&](const Graph& part) {
    int64_t own = 0;
    Schedule plan = schedule_fsm(part, keys, policy, &own);
    unseen += own;
    return plan;
  });
  return {std::move(order), std::move(start), unseen};
}

using Plans = PlanCache<py::object>;

void bind_graph(py::module_& m) {
  py::class_<Graph, std::shared_ptr<Graph>>(m, "Graph", "Typed nodes and the nodes they read.")
      .def(
          py::init(&make_graph), py::arg("type").noconvert(), py::arg("arg_start").noconvert(),
          py::arg("args").noconvert(), py::arg("lone").noconvert(), py::arg("depth").noconvert(),
          py::arg("phase").noconvert())
      .def_property_readonly("nodes", &Graph::nodes)
      .def_readonly("types", &Graph::types)
      .def_property_readonly("type", [](const std::shared_ptr<Graph>& g) { return seen(g, g->type); })
      .def_property_readonly("arg_start", [](const std::shared_ptr<Graph>& g) { return seen(g, g->arg_start); })
      .def_property_readonly("args", [](const std::shared_ptr<Graph>& g) { return seen(g, g->args); })
      .def_property_readonly("lone", [](const std::shared_ptr<Graph>& g) { return seen(g, g->lone); })
      .def_property_readonly("depth", [](const std::shared_ptr<Graph>& g) { return seen(g, g->depth); })
      .def_property_readonly("phase", [](const std::shared_ptr<Graph>& g) { return seen(g, g->phase); })
      .def("typed_depths", [](const Graph& graph) {
        std::vector<int64_t> depths;
        {
          const py::gil_scoped_release release;
          depths = typed_depths(graph);
        }
        return array_of(std::move(depths), false);
      });
}

void bind_schedulers(py::module_& m) {
  m.def("schedule_depth", [](const Graph& graph) { return phased(graph, schedule_depth); });
  m.def("schedule_inline", [](const Graph& graph) { return scheduled([&] { return schedule_inline(graph); }); });
  m.def("schedule_agenda", [](const Graph& graph, bool remaining) {
    return phased(graph, [remaining](const Graph& part) { return schedule_agenda(part, remaining); });
  });
  m.def("schedule_sufficient", [](const Graph& graph) { return phased(graph, schedule_sufficient); });
  m.def("schedule_lookahead", [](const Graph& graph) { return phased(graph, schedule_lookahead); });
  m.def("schedule_beam", [](const Graph& graph, int32_t width) {
    return phased(graph, [width](const Graph& part) { return schedule_beam(part, width); });
  });
  m.def("schedule_fsm", &run_policy, "order, start, number of decisions about unseen states");
}

void bind_coarsen(py::module_& m) {
  py::class_<Coarse>(m, "Coarse", "A graph with chains of calls as single nodes.")
      .def_readonly("graph", &Coarse::graph)
      .def_readonly("head_type", &Coarse::head_type)
      .def_readonly("type_after", &Coarse::type_after)
      .def("expand", [](const Coarse& coarse, const Array<int32_t>& order, const Array<int64_t>& start) {
        const Schedule plan{copied(order), copied(start)};
        return scheduled([&] { return expand(coarse, plan); });
      });
  m.def("coarsen", &coarsen, py::call_guard<py::gil_scoped_release>());
}

void bind_policy(py::module_& m) {
  py::class_<Policy>(m, "Policy", "States of ready types to the type that runs.")
      .def(py::init(&make_policy))
      .def_property_readonly("kind", [](const Policy& p) { return static_cast<int32_t>(p.kind); })
      .def_readonly("phases", &Policy::phases)
      .def_property_readonly("keys", &keys_of)
      .def_property_readonly("table", &table_of)
      .def("__len__", [](const Policy& p) { return p.actions.size(); });
  m.def("train_fsm", &train, "policy, iterations, batches");
}

void bind_cache(py::module_& m) {
  py::class_<Plans>(m, "PlanCache", "Plans by graph structure and tag.")
      .def(py::init<int64_t, int32_t>())
      .def(
          "find",
          [](Plans& plans, const Graph& graph, const std::string& tag) -> py::object {
            const py::object* found = plans.find(graph, tag);
            return found == nullptr ? py::none() : *found;
          })
      .def(
          "keep", [](Plans& plans, std::shared_ptr<Graph> graph, std::string tag,
                     py::object plan) { plans.keep(std::move(graph), std::move(tag), std::move(plan)); })
      .def("clear", &Plans::clear)
      .def_property_readonly("hits", &Plans::hits)
      .def_property_readonly("misses", &Plans::misses)
      .def("__len__", &Plans::size);
}

}  // namespace

void bind_schedule(py::module_& m) {
  bind_graph(m);
  bind_schedulers(m);
  bind_coarsen(m);
  bind_policy(m);
  bind_cache(m);
}

}  // namespace edgeops::batching
