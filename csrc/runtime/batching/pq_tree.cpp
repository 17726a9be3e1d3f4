// SPDX-License-Identifier: Apache-2.0
#include "pq_tree.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace edgeops::batching {

namespace {

using Nodes = std::vector<int32_t>;

void append(Nodes& to, const Nodes& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

// Children of a partial node: outside the set, inside it, and the one that is cut, in tree order.
struct PQTree::Split {
  Nodes empty;
  Nodes full;
  int32_t partial = -1;
};

PQTree::PQTree(int32_t variables) : variables_(variables), nodes_(variables), inside_(variables, 0) {
  if (variables > 0) {
    Nodes all(variables);
    std::iota(all.begin(), all.end(), 0);
    root_ = group(all);
  }
}

int32_t PQTree::make(Kind kind, Nodes children) {
  int32_t id = 0;
  if (free_.empty()) {
    id = capacity();
    nodes_.emplace_back();
    inside_.push_back(0);
  } else {
    id = free_.back();
    free_.pop_back();
    nodes_[id] = Node();
  }
  nodes_[id].kind = kind;
  adopt(id, std::move(children));
  return id;
}

// One node for several: itself if single, otherwise a P node (a Q node of two).
int32_t PQTree::group(const Nodes& children) {
  return children.size() == 1 ? children[0] : make(Kind::kP, children);
}

void PQTree::adopt(int32_t parent, Nodes children) {
  int32_t leaves = 0;
  for (const int32_t child : children) {
    nodes_[child].parent = parent;
    leaves += nodes_[child].leaves;
  }
  Node& node = nodes_[parent];
  node.leaves = leaves;
  node.kind = children.size() == 2 ? Kind::kQ : node.kind;
  node.children = std::move(children);
}

// Fills inside_; returns the number of different variables.
int32_t PQTree::count(const Nodes& set) const {
  for (const int32_t node : touched_) {
    inside_[node] = 0;
  }
  touched_.clear();
  int32_t size = 0;
  for (const int32_t variable : set) {
    if (inside_[variable] != 0) {
      continue;
    }
    ++size;
    for (int32_t node = variable; node >= 0; node = nodes_[node].parent) {
      if (inside_[node]++ == 0) {
        touched_.push_back(node);
      }
    }
  }
  return size;
}

bool PQTree::full(int32_t node) const {
  return inside_[node] == nodes_[node].leaves;
}

bool PQTree::partial(int32_t node) const {
  return inside_[node] != 0 && !full(node);
}

// False where no order of the partial node has its inside part at one end.
bool PQTree::split(int32_t node, Split& parts) const {
  const Node& of = nodes_[node];
  Nodes children = of.children;
  if (of.kind == Kind::kQ && (full(children.front()) || inside_[children.back()] == 0)) {
    std::reverse(children.begin(), children.end());
  }
  int stage = 0;  // of a Q node: outside, cut, inside
  for (const int32_t child : children) {
    const int here = full(child) ? 2 : partial(child) ? 1 : 0;
    if (here == 1 && parts.partial >= 0) {
      return false;
    }
    if (of.kind == Kind::kQ && here < stage) {
      return false;
    }
    stage = here;
    if (here == 1) {
      parts.partial = child;
    } else {
      (here == 2 ? parts.full : parts.empty).push_back(child);
    }
  }
  return true;
}

bool PQTree::splits_to_the_end(int32_t node) const {
  while (node >= 0) {
    Split parts;
    if (!split(node, parts)) {
      return false;
    }
    node = parts.partial;
  }
  return true;
}

// Children of the Q node that replaces a partial node: from outside to inside. Frees the node.
Nodes PQTree::unfold(int32_t node) {
  Nodes outside;
  std::vector<Nodes> inside;
  while (node >= 0) {
    Split parts;
    split(node, parts);
    if (nodes_[node].kind == Kind::kP) {
      if (!parts.empty.empty()) {
        parts.empty = {group(parts.empty)};
      }
      if (!parts.full.empty()) {
        parts.full = {group(parts.full)};
      }
    }
    append(outside, parts.empty);
    inside.push_back(std::move(parts.full));
    free_.push_back(node);
    node = parts.partial;
  }
  for (auto part = inside.rbegin(); part != inside.rend(); ++part) {
    append(outside, *part);
  }
  return outside;
}

PQTree::Reduced PQTree::reduce(const Nodes& set) {
  const int32_t size = count(set);
  if (size < 2) {
    return Reduced::kUnchanged;
  }
  const Span top = around(set[0], size);
  if (full(top.node)) {
    return Reduced::kUnchanged;
  }
  return nodes_[top.node].kind == Kind::kP ? reduce_p(top.node) : reduce_q(top);
}

PQTree::Reduced PQTree::reduce_p(int32_t top) {
  Nodes empty;
  Nodes inside;
  Nodes cut;
  for (const int32_t child : nodes_[top].children) {
    (inside_[child] == 0 ? empty : full(child) ? inside : cut).push_back(child);
  }
  if (cut.size() > 2 || !std::all_of(cut.begin(), cut.end(), [&](int32_t c) { return splits_to_the_end(c); })) {
    return Reduced::kImpossible;
  }
  if (cut.empty()) {
    empty.push_back(group(inside));
    adopt(top, std::move(empty));
    return Reduced::kChanged;
  }
  Nodes chain = unfold(cut[0]);
  if (!inside.empty()) {
    chain.push_back(group(inside));
  }
  if (cut.size() == 2) {
    Nodes tail = unfold(cut[1]);
    std::reverse(tail.begin(), tail.end());
    append(chain, tail);
  }
  if (empty.empty()) {
    nodes_[top].kind = Kind::kQ;
    adopt(top, std::move(chain));
  } else {
    empty.push_back(make(Kind::kQ, std::move(chain)));
    adopt(top, std::move(empty));
  }
  return Reduced::kChanged;
}

PQTree::Reduced PQTree::reduce_q(Span part) {
  const Nodes children = nodes_[part.node].children;
  bool cut = false;
  for (int32_t i = part.first; i <= part.last; ++i) {
    if (full(children[i])) {
      continue;
    }
    const bool end = i == part.first || i == part.last;
    if (!end || inside_[children[i]] == 0 || !splits_to_the_end(children[i])) {
      return Reduced::kImpossible;
    }
    cut = true;
  }
  if (!cut) {
    return Reduced::kUnchanged;
  }
  Nodes chain;
  for (int32_t i = 0; i < static_cast<int32_t>(children.size()); ++i) {
    if (!partial(children[i])) {
      chain.push_back(children[i]);
      continue;
    }
    Nodes piece = unfold(children[i]);
    if (i == part.last) {
      std::reverse(piece.begin(), piece.end());
    }
    append(chain, piece);
  }
  adopt(part.node, std::move(chain));
  return Reduced::kChanged;
}

PQTree::Span PQTree::span(const Nodes& set) const {
  const int32_t size = count(set);
  return around(set[0], size);
}

// The smallest part with `size` of the counted leaves.
PQTree::Span PQTree::around(int32_t top, int32_t size) const {
  while (inside_[top] != size) {
    top = nodes_[top].parent;
  }
  const Nodes& children = nodes_[top].children;
  Span result{top, 0, static_cast<int32_t>(children.size()) - 1};
  if (nodes_[top].kind == Kind::kQ) {
    while (inside_[children[result.first]] == 0) {
      ++result.first;
    }
    while (inside_[children[result.last]] == 0) {
      --result.last;
    }
  }
  return result;
}

Nodes PQTree::frontier() const {
  return root_ < 0 ? Nodes() : leaves(root_);
}

Nodes PQTree::leaves(int32_t node) const {
  Nodes result;
  Nodes stack{node};
  while (!stack.empty()) {
    const int32_t top = stack.back();
    stack.pop_back();
    if (nodes_[top].kind == Kind::kLeaf) {
      result.push_back(top);
    }
    stack.insert(stack.end(), nodes_[top].children.rbegin(), nodes_[top].children.rend());
  }
  return result;
}

}  // namespace edgeops::batching
