// SPDX-License-Identifier: Apache-2.0
#include "schedule_sufficient.h"

#include <algorithm>
#include <bit>

namespace edgeops::batching {
namespace {

constexpr int32_t kBits = 64;  // types a sweep

// Types that reach themselves, found in sweeps of 64 candidates each.
std::vector<int32_t> self_reaching(const Graph& graph, const Links& links) {
  std::vector<int32_t> candidates, found;
  for (int32_t t = 0; t < graph.types; ++t) {
    if (!graph.lone[t] && links.count(t) > 1) {
      candidates.push_back(t);
    }
  }
  std::vector<uint64_t> bit(graph.types), above(graph.nodes());
  for (size_t first = 0; first < candidates.size(); first += kBits) {
    const size_t last = std::min(candidates.size(), first + kBits);
    std::fill(bit.begin(), bit.end(), 0);
    for (size_t c = first; c < last; ++c) {
      bit[candidates[c]] = uint64_t{1} << (c - first);
    }
    uint64_t seen = 0;
    for (int64_t v = 0; v < graph.nodes(); ++v) {
      uint64_t mask = 0;
      for (int64_t e = graph.arg_start[v]; e < graph.arg_start[v + 1]; ++e) {
        mask |= above[graph.args[e]];
      }
      const uint64_t own = bit[graph.type[v]];
      seen |= mask & own;
      above[v] = mask | own;
    }
    for (; seen != 0; seen &= seen - 1) {
      found.push_back(candidates[first + std::countr_zero(seen)]);
    }
  }
  return found;
}

}  // namespace

TypedFrontiers::TypedFrontiers(const Graph& graph, const Links& links, const Frontier& frontier)
    : graph_(&graph),
      links_(&links),
      self_reaching_(self_reaching(graph, links)),
      slot_(graph.types, -1),
      size_(self_reaching_.size(), 0) {
  for (size_t k = 0; k < self_reaching_.size(); ++k) {
    slot_[self_reaching_[k]] = static_cast<int32_t>(k);
  }
  const size_t counters = self_reaching_.size() * graph.nodes();
  if (links.max_in_degree < 65536) {
    narrow_.assign(counters, 0);
    fill(frontier, narrow_);
  } else {
    wide_.assign(counters, 0);
    fill(frontier, wide_);
  }
}

template <class Counter>
void TypedFrontiers::fill(const Frontier& frontier, std::vector<Counter>& blocked) {
  const Graph& graph = *graph_;
  const int64_t nodes = graph.nodes();
  std::vector<uint64_t> bit(graph.types), above(nodes), below(nodes);
  for (size_t first = 0; first < self_reaching_.size(); first += kBits) {
    const size_t last = std::min(self_reaching_.size(), first + kBits);
    std::fill(bit.begin(), bit.end(), 0);
    for (size_t k = first; k < last; ++k) {
      bit[self_reaching_[k]] = uint64_t{1} << (k - first);
    }
    std::fill(below.begin(), below.end(), 0);
    for (int64_t v = nodes - 1; v >= 0; --v) {
      below[v] |= bit[graph.type[v]];
      for (int64_t e = graph.arg_start[v]; below[v] != 0 && e < graph.arg_start[v + 1]; ++e) {
        below[graph.args[e]] |= below[v];
      }
    }
    Counter* const rows = blocked.data() + first * nodes;
    for (int64_t v = 0; v < nodes; ++v) {
      above[v] = 0;
      if (frontier.ran(static_cast<int32_t>(v))) {
        continue;
      }
      uint64_t seen = 0;
      for (int64_t e = graph.arg_start[v]; e < graph.arg_start[v + 1]; ++e) {
        const uint64_t mask = above[graph.args[e]] & below[v];
        seen |= mask;
        for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
          ++rows[std::countr_zero(rest) * nodes + v];
        }
      }
      const uint64_t own = bit[graph.type[v]];
      if ((own & ~seen) != 0) {
        ++size_[first + std::countr_zero(own)];
      }
      above[v] = seen | own;
    }
  }
}

int32_t TypedFrontiers::best(const Frontier& frontier, std::span<const int32_t> types) const {
  int32_t found = -1;
  int64_t ready = 0, typed = 1;
  for (const int32_t type : types) {
    const int64_t r = frontier.ready_count(type), s = size(type, frontier);
    const int64_t ahead = r * typed - ready * s;
    if (ahead > 0 || (ahead == 0 && (r > ready || (r == ready && type < found)))) {
      found = type, ready = r, typed = s;
    }
  }
  return found;
}

void TypedFrontiers::ran(int32_t type, std::span<const int32_t> batch) {
  const int32_t k = slot_[type];
  if (k < 0) {
    return;
  }
  const int64_t row = k * graph_->nodes();
  if (wide_.empty()) {
    unblock(type, batch, narrow_.data() + row);
  } else {
    unblock(type, batch, wide_.data() + row);
  }
}

template <class Counter>
void TypedFrontiers::unblock(int32_t type, std::span<const int32_t> batch, Counter* blocked) {
  int64_t size = size_[slot_[type]] - static_cast<int64_t>(batch.size());
  const auto visit = [&](int32_t x) {
    for (int64_t e = links_->out_start[x]; e < links_->out_start[x + 1]; ++e) {
      const int32_t y = links_->out[e];
      // 0: no node of the type is y or comes after it
      if (blocked[y] != 0 && --blocked[y] == 0) {
        if (graph_->type[y] == type) {
          ++size;  // and blocks its own consumers in turn
        } else {
          stack_.push_back(y);
        }
      }
    }
  };
  for (const int32_t x : batch) {
    visit(x);
  }
  while (!stack_.empty()) {
    const int32_t x = stack_.back();
    stack_.pop_back();
    visit(x);
  }
  size_[slot_[type]] = size;
}

}  // namespace edgeops::batching
