// SPDX-License-Identifier: Apache-2.0
#include "arrangement.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace edgeops::batching {

namespace {

using Nodes = std::vector<int32_t>;
using Kind = PQTree::Kind;
using Reduced = PQTree::Reduced;

Nodes identity(size_t size) {
  Nodes result(size);
  std::iota(result.begin(), result.end(), 0);
  return result;
}

// after[before[i]]; an empty permutation is the identity.
Nodes compose(const Nodes& after, const Nodes& before) {
  if (after.empty() || before.empty()) {
    return after.empty() ? before : after;
  }
  Nodes result(before.size());
  std::transform(before.begin(), before.end(), result.begin(), [&](int32_t i) { return after[i]; });
  return result;
}

Nodes inverse(const Nodes& permutation) {
  Nodes result(permutation.size());
  for (size_t i = 0; i < permutation.size(); ++i) {
    result[permutation[i]] = static_cast<int32_t>(i);
  }
  return result;
}

Nodes part(const PQTree& tree, const PQTree::Span& span) {
  const Nodes& children = tree.node(span.node).children;
  return {children.begin() + span.first, children.begin() + span.last + 1};
}

}  // namespace

bool Arrangement::demand(const Operand& operand) {
  if (impose({identity(operand.variables.size())}, operand.variables) == Reduced::kImpossible) {
    return false;
  }
  operands_[operand.batch].push_back(operand.variables);
  return true;
}

bool Arrangement::close() {
  steps_ += tree_.capacity();
  return equalise() && orient();
}

// Until the parts of the tree that hold the operands of a batch are equal in structure: what is consecutive in one
// operand must be so at the same positions in the others.
bool Arrangement::equalise() {
  const auto any = [](const Pairing&) { return true; };
  for (bool changed = true; changed;) {
    changed = false;
    for (const std::vector<Nodes>& batch : operands_) {
      for (size_t i = 1; i < batch.size(); ++i) {
        while (!match(batch[0], batch[i], any)) {
          const Reduced there = impose(constraints(batch[0]), batch[i]);
          const Reduced back = there == Reduced::kImpossible ? there : impose(constraints(batch[i]), batch[0]);
          if (back == Reduced::kImpossible || (there == Reduced::kUnchanged && back == Reduced::kUnchanged)) {
            return false;
          }
          changed = true;
        }
      }
    }
  }
  return true;
}

Reduced Arrangement::impose(const std::vector<Nodes>& positions, const Nodes& operand) {
  Reduced result = Reduced::kUnchanged;
  Nodes set;
  for (const Nodes& at : positions) {
    set.clear();
    for (const int32_t p : at) {
      set.push_back(operand[p]);
    }
    steps_ += static_cast<int64_t>(set.size());
    const Reduced one = tree_.reduce(set);
    if (one == Reduced::kImpossible) {
      return one;
    }
    result = one == Reduced::kChanged ? one : result;
  }
  return result;
}

// Sets of positions that the tree keeps consecutive within an operand.
std::vector<Nodes> Arrangement::constraints(const Nodes& operand) {
  write_keys(operand, keys_[0]);
  const auto positions = [&](int32_t node, Nodes& into) {
    for (const int32_t leaf : tree_.leaves(node)) {
      into.push_back(keys_[0][leaf]);
    }
  };
  std::vector<Nodes> result;
  std::vector<std::pair<Kind, Nodes>> stack;
  const PQTree::Span top = tree_.span(operand);
  stack.emplace_back(tree_.node(top.node).kind, part(tree_, top));
  while (!stack.empty()) {
    const auto [kind, children] = std::move(stack.back());
    stack.pop_back();
    if (kind == Kind::kP) {
      Nodes& all = result.emplace_back();
      for (const int32_t child : children) {
        positions(child, all);
      }
    }
    for (size_t i = 0; kind == Kind::kQ && i + 1 < children.size(); ++i) {
      Nodes& two = result.emplace_back();
      positions(children[i], two);
      positions(children[i + 1], two);
    }
    for (const int32_t child : children) {
      if (tree_.node(child).kind != Kind::kLeaf) {
        stack.emplace_back(tree_.node(child).kind, tree_.node(child).children);
      }
    }
  }
  return result;
}

void Arrangement::write_keys(const Nodes& operand, Nodes& keys) {
  constexpr int32_t kNone = std::numeric_limits<int32_t>::max();
  const int32_t top = tree_.span(operand).node;
  keys.resize(tree_.capacity(), kNone);
  for (const int32_t variable : operand) {
    for (int32_t node = variable; node != tree_.node(top).parent; node = tree_.node(node).parent) {
      keys[node] = kNone;
    }
  }
  for (size_t p = 0; p < operand.size(); ++p) {
    for (int32_t node = operand[p]; node != tree_.node(top).parent; node = tree_.node(node).parent) {
      keys[node] = std::min(keys[node], static_cast<int32_t>(p));
    }
  }
}

// Walks the parts of two operands side by side. False where their structures differ or `visit` returns false.
bool Arrangement::match(const Nodes& first, const Nodes& second, const std::function<bool(const Pairing&)>& visit) {
  struct Frame {
    int32_t first;
    Nodes left;
    int32_t second;
    Nodes right;
  };
  steps_ += static_cast<int64_t>(first.size());
  write_keys(first, keys_[0]);
  write_keys(second, keys_[1]);
  const PQTree::Span a = tree_.span(first);
  const PQTree::Span b = tree_.span(second);
  std::vector<Frame> stack{{a.node, part(tree_, a), b.node, part(tree_, b)}};
  while (!stack.empty()) {
    const Frame top = std::move(stack.back());
    stack.pop_back();
    if (top.left.empty() && top.right.empty()) {
      if (keys_[0][top.first] != keys_[1][top.second]) {
        return false;
      }
      continue;
    }
    Pairing pairing{top.first, top.second, false, {}};
    if (!pair(top.first, top.left, top.second, top.right, pairing) || !visit(pairing)) {
      return false;
    }
    for (size_t i = 0; i < top.left.size(); ++i) {
      const size_t j = !pairing.permutation.empty() ? static_cast<size_t>(pairing.permutation[i])
                       : pairing.reversed           ? top.left.size() - 1 - i
                                                    : i;
      stack.push_back({top.left[i], tree_.node(top.left[i]).children, top.right[j], tree_.node(top.right[j]).children});
    }
  }
  return true;
}

bool Arrangement::pair(int32_t first, const Nodes& left, int32_t second, const Nodes& right, Pairing& pairing) const {
  if (left.size() != right.size() || tree_.node(first).kind != tree_.node(second).kind) {
    return false;
  }
  const auto keys_of = [&](const Nodes& nodes, const Nodes& keys) {
    Nodes result;
    for (const int32_t node : nodes) {
      result.push_back(keys[node]);
    }
    return result;
  };
  Nodes here = keys_of(left, keys_[0]);
  Nodes there = keys_of(right, keys_[1]);
  if (tree_.node(first).kind == Kind::kQ) {
    pairing.reversed = here.front() != there.front();
    return pairing.reversed ? std::equal(here.begin(), here.end(), there.rbegin()) : here == there;
  }
  Nodes at_here = identity(here.size());
  Nodes at_there = at_here;
  std::sort(at_here.begin(), at_here.end(), [&](int32_t x, int32_t y) { return here[x] < here[y]; });
  std::sort(at_there.begin(), at_there.end(), [&](int32_t x, int32_t y) { return there[x] < there[y]; });
  pairing.permutation.resize(here.size());
  for (size_t i = 0; i < here.size(); ++i) {
    if (here[at_here[i]] != there[at_there[i]]) {
      return false;
    }
    pairing.permutation[at_here[i]] = at_there[i];
  }
  return true;
}

// Ties the orders of corresponding nodes to one another. False where the ties contradict each other.
bool Arrangement::orient() {
  follow_.assign(tree_.capacity(), Follow());
  for (const std::vector<Nodes>& batch : operands_) {
    for (size_t i = 1; i < batch.size(); ++i) {
      if (!match(batch[0], batch[i], [this](const Pairing& pairing) { return link(pairing); })) {
        return false;
      }
    }
  }
  return true;
}

Arrangement::Relation Arrangement::relation(int32_t node) const {
  Relation result{node, false, {}};
  while (follow_[result.root].parent >= 0) {
    const Follow& step = follow_[result.root];
    result.reversed ^= step.reversed;
    result.permutation = compose(result.permutation, step.permutation);
    result.root = step.parent;
  }
  return result;
}

// With order(second) = T order(first), order(first) = F order(f), order(second) = S order(s) for the roots f and s:
// order(s) = S^-1 T F order(f).
bool Arrangement::link(const Pairing& pairing) {
  const Relation first = relation(pairing.first);
  const Relation second = relation(pairing.second);
  const bool reversed = first.reversed ^ pairing.reversed ^ second.reversed;
  Nodes permutation = compose(inverse(second.permutation), compose(pairing.permutation, first.permutation));
  if (first.root != second.root) {
    follow_[second.root] = {first.root, reversed, std::move(permutation)};
    return true;
  }
  return !reversed && permutation == identity(permutation.size());
}

std::vector<int32_t> Arrangement::order() const {
  Nodes result;
  Nodes stack;
  if (tree_.root() >= 0) {
    stack.push_back(tree_.root());
  }
  while (!stack.empty()) {
    const int32_t node = stack.back();
    stack.pop_back();
    Nodes children = tree_.node(node).children;
    if (children.empty()) {
      result.push_back(node);
      continue;
    }
    const Relation how = follow_.empty() ? Relation{node, false, {}} : relation(node);
    if (!how.permutation.empty()) {
      for (size_t i = 0; i < children.size(); ++i) {
        children[i] = tree_.node(node).children[how.permutation[i]];
      }
    }
    if (how.reversed) {
      std::reverse(children.begin(), children.end());
    }
    stack.insert(stack.end(), children.rbegin(), children.rend());
  }
  return result;
}

}  // namespace edgeops::batching
