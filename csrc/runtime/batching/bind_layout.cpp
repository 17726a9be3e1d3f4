// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "bind.h"
#include "cell.h"
#include "layout.h"
#include "pq_tree.h"

namespace edgeops::batching {

namespace py = pybind11;

namespace {

constexpr int32_t kAnyExternal = std::numeric_limits<int32_t>::min();

void check_ids(const std::vector<int32_t>& ids, int32_t lowest, int32_t variables) {
  for (const int32_t id : ids) {
    if (id < lowest || id >= variables) {
      throw std::invalid_argument(
          "layout: ids must be below " + std::to_string(variables) + (lowest < 0 ? "" : " and not negative") +
          "; got " + std::to_string(id) + ". Number the variables from 0.");
    }
  }
}

void check_batches(int32_t variables, const std::vector<Batch>& batches) {
  for (const Batch& batch : batches) {
    for (const std::vector<int32_t>& operand : batch) {
      if (operand.size() != batch[0].size()) {
        throw std::invalid_argument(
            "layout: operands of a batch must have equal lengths; got " + std::to_string(batch[0].size()) + " and " +
            std::to_string(operand.size()) + ". Give one variable per member.");
      }
      check_ids(operand, kAnyExternal, variables);
    }
  }
}

void check_cell(const Cell& cell) {
  const auto size = static_cast<int32_t>(cell.type.size());
  bool fine = cell.args.size() == cell.type.size() && cell.inputs >= 0;
  std::map<int32_t, size_t> arity;
  for (int32_t v = 0; fine && v < size; ++v) {
    fine = cell.type[v] >= 0 && cell.type[v] < size &&
           arity.try_emplace(cell.type[v], cell.args[v].size()).first->second == cell.args[v].size();
    check_ids(cell.args[v], kAnyExternal, size + cell.inputs);
    fine =
        fine && std::none_of(cell.args[v].begin(), cell.args[v].end(), [&](int32_t a) { return a >= v && a < size; });
  }
  if (!fine) {
    throw std::invalid_argument(
        "layout: a cell needs types below the number of operations, arguments before their consumers and one number "
        "of arguments per type; got another one. Use edgeops.batching.plan_cell.");
  }
}

PQTree make_tree(int32_t variables) {
  if (variables < 0) {
    throw std::invalid_argument(
        "PQTree: variables must be at least 0; got " + std::to_string(variables) + ". Give their number.");
  }
  return PQTree(variables);
}

// Preorder of (kind, children, variable): ("Q", 3, -1) is followed by the three children's nodes.
py::list structure(const PQTree& tree) {
  py::list result;
  std::vector<int32_t> stack;
  if (tree.root() >= 0) {
    stack.push_back(tree.root());
  }
  while (!stack.empty()) {
    const int32_t id = stack.back();
    stack.pop_back();
    const PQTree::Node& node = tree.node(id);
    const bool leaf = node.kind == PQTree::Kind::kLeaf;
    const char* kind = leaf ? "leaf" : node.kind == PQTree::Kind::kP ? "P" : "Q";
    result.append(py::make_tuple(kind, node.children.size(), leaf ? id : -1));
    stack.insert(stack.end(), node.children.rbegin(), node.children.rend());
  }
  return result;
}

py::tuple as_tuple(const Layout& layout) {
  std::vector<std::vector<int>> verdicts;
  for (const std::vector<Verdict>& batch : layout.verdicts) {
    std::vector<int>& row = verdicts.emplace_back();
    for (const Verdict verdict : batch) {
      row.push_back(static_cast<int>(verdict));
    }
  }
  return py::make_tuple(layout.order, layout.members, verdicts, layout.copies, layout.copied, layout.minimal);
}

}  // namespace

void bind_layout(py::module_& m) {
  py::class_<PQTree>(m, "PQTree", "All orders of variables 0..n-1 in which given sets are consecutive.")
      .def(py::init(&make_tree), py::arg("variables"))
      .def(
          "reduce",
          [](PQTree& tree, const std::vector<int32_t>& set) {
            check_ids(set, 0, tree.variables());
            return tree.reduce(set) != PQTree::Reduced::kImpossible;
          },
          py::arg("set"), "Keep the orders in which the set is consecutive; False, and unchanged, where none is.")
      .def("frontier", &PQTree::frontier, "One of the orders.")
      .def(
          "subtree",
          [](const PQTree& tree, const std::vector<int32_t>& set) {
            check_ids(set, 0, tree.variables());
            if (set.empty()) {
              throw std::invalid_argument("PQTree: a set needs variables; got an empty one. Give at least one.");
            }
            const PQTree::Span span = tree.span(set);
            const PQTree::Node& node = tree.node(span.node);
            const bool leaf = node.kind == PQTree::Kind::kLeaf;
            std::vector<std::vector<int32_t>> children;
            for (int32_t i = span.first; i <= span.last; ++i) {
              children.push_back(tree.leaves(node.children[i]));
            }
            return py::make_tuple(leaf ? "leaf" : node.kind == PQTree::Kind::kP ? "P" : "Q", children);
          },
          py::arg("set"), "Kind of the smallest node around a set, and the variables below each child of it there.")
      .def("structure", &structure, "Preorder of (kind, number of children, variable).");
  m.def(
      "plan_cell",
      [](int32_t inputs, std::vector<int32_t> type, std::vector<std::vector<int32_t>> args, int64_t effort) {
        const Cell cell{inputs, std::move(type), std::move(args)};
        check_cell(cell);
        const CellPlan plan = plan_cell(cell, effort);
        return py::make_tuple(plan.batches, as_tuple(plan.layout), plan.fewest);
      },
      py::arg("inputs"), py::arg("type"), py::arg("args"), py::arg("effort"));
  m.def(
      "judge_order",
      [](std::vector<int32_t> order, const std::vector<Batch>& batches) {
        const auto variables = static_cast<int32_t>(order.size());
        std::vector<int32_t> sorted = order;
        std::sort(sorted.begin(), sorted.end());
        for (int32_t i = 0; i < variables; ++i) {
          if (sorted[i] != i) {
            throw std::invalid_argument(
                "layout: an order must name each variable once; got another one. Give a permutation.");
          }
        }
        check_batches(variables, batches);
        return as_tuple(judge(batches, std::move(order)));
      },
      py::arg("order"), py::arg("batches"));
  m.def(
      "plan_layout",
      [](int32_t variables, const std::vector<Batch>& batches, int64_t effort) {
        check_batches(variables, batches);
        return as_tuple(plan_layout(variables, batches, effort));
      },
      py::arg("variables"), py::arg("batches"), py::arg("effort"));
}

}  // namespace edgeops::batching
