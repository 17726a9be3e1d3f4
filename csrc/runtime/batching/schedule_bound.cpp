// SPDX-License-Identifier: Apache-2.0
#include "schedule_bound.h"

#include <algorithm>

namespace edgeops::batching {

TypedHeights::TypedHeights(const Graph& graph, const Links& links) : height(graph.nodes(), 1), bound(graph.types, 0) {
  constexpr int32_t kLanes = 8;  // types a sweep
  std::vector<int32_t> batched;
  for (int32_t t = 0; t < graph.types; ++t) {
    const int64_t count = links.count(t);
    bound[t] = graph.lone[t] ? count : std::min<int64_t>(count, 1);
    if (!graph.lone[t] && count > 1) {
      batched.push_back(t);
    }
  }
  std::vector<int32_t> chain(graph.nodes() * kLanes), lane(graph.types, -1);
  for (size_t first = 0; first < batched.size(); first += kLanes) {
    const size_t last = std::min(batched.size(), first + kLanes);
    std::fill(lane.begin(), lane.end(), -1);
    std::fill(chain.begin(), chain.end(), 0);
    for (size_t b = first; b < last; ++b) {
      lane[batched[b]] = static_cast<int32_t>(b - first);
    }
    for (int64_t v = graph.nodes() - 1; v >= 0; --v) {
      int32_t* own = chain.data() + v * kLanes;
      const int32_t type = graph.type[v];
      if (const int32_t i = lane[type]; i >= 0) {
        height[v] = ++own[i];
        bound[type] = std::max<int64_t>(bound[type], own[i]);
      }
      for (int64_t e = graph.arg_start[v]; e < graph.arg_start[v + 1]; ++e) {
        int32_t* to = chain.data() + graph.args[e] * int64_t{kLanes};
        for (int32_t i = 0; i < kLanes; ++i) {
          to[i] = std::max(to[i], own[i]);
        }
      }
    }
  }
}

RemainingBound::RemainingBound(const Graph& graph, const TypedHeights& heights)
    : heights_(&heights), base_(graph.types), top_(graph.types, 0), seen_(graph.types) {
  int64_t size = 0;
  for (int32_t t = 0; t < graph.types; ++t) {
    base_[t] = size;
    if (!graph.lone[t]) {
      top_[t] = static_cast<int32_t>(heights.bound[t]);
      size += heights.bound[t] + 1;
      total_ += heights.bound[t];
    }
  }
  count_.assign(size, 0);
  for (int64_t v = 0; v < graph.nodes(); ++v) {
    if (!graph.lone[graph.type[v]]) {
      ++count_[base_[graph.type[v]] + heights.height[v]];
    }
  }
}

bool RemainingBound::lowered_by(int32_t type, std::span<const int32_t> ready) {
  Seen& seen = seen_[type];
  for (; seen.nodes < static_cast<int64_t>(ready.size()); ++seen.nodes) {
    seen.at_top += heights_->height[ready[seen.nodes]] == top_[type];
  }
  return seen.at_top == count_[base_[type] + top_[type]];
}

void RemainingBound::ran(int32_t type, std::span<const int32_t> batch) {
  for (const int32_t v : batch) {
    --count_[base_[type] + heights_->height[v]];
  }
  for (; top_[type] > 0 && count_[base_[type] + top_[type]] == 0; --top_[type]) {
    --total_;
  }
  seen_[type] = {};
}

}  // namespace edgeops::batching
