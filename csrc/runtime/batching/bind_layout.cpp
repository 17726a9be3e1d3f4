// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bind.h"
#include "layout.h"
#include "pq_tree.h"

namespace edgeops::batching {

namespace py = pybind11;

namespace {

void check_ids(const std::vector<int32_t>& ids, int32_t lowest, int32_t variables) {
  for (const int32_t id : ids) {
    if (id < lowest || id >= variables) {
      throw std::invalid_argument(
          "layout: ids must be in " + std::to_string(lowest) + ".." + std::to_string(variables - 1) + "; got " +
          std::to_string(id) + ". Number the variables from 0.");
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
      check_ids(operand, kExternal, variables);
    }
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
      "plan_layout",
      [](int32_t variables, const std::vector<Batch>& batches, int64_t effort) {
        check_batches(variables, batches);
        return as_tuple(plan_layout(variables, batches, effort));
      },
      py::arg("variables"), py::arg("batches"), py::arg("effort"));
}

}  // namespace edgeops::batching
