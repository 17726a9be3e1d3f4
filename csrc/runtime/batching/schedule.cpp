// SPDX-License-Identifier: Apache-2.0
#include "schedule.h"

#include <algorithm>
#include <vector>

#include "schedule_bound.h"
#include "schedule_frontier.h"
#include "schedule_sufficient.h"

namespace edgeops::batching {
namespace {

__extension__ typedef __int128 Wide;

// Longest way from a node without arguments, in edges.
std::vector<int32_t> depths(const Graph& graph) {
  std::vector<int32_t> depth(graph.nodes());
  for (int64_t v = 0; v < graph.nodes(); ++v) {
    for (int64_t e = graph.arg_start[v]; e < graph.arg_start[v + 1]; ++e) {
      depth[v] = std::max(depth[v], depth[graph.args[e]] + 1);
    }
  }
  return depth;
}

}  // namespace

std::vector<int64_t> typed_depths(const Graph& graph) {
  return TypedHeights(graph, Links(graph)).bound;
}

Schedule schedule_depth(const Graph& graph) {
  const std::vector<int32_t> depth = depths(graph);
  const Links links(graph);
  // nodes sorted by depth, then type, then id: two stable counting sorts
  const int64_t nodes = graph.nodes();
  std::vector<int32_t> by_type(nodes);
  std::vector<int64_t> place(links.type_start.begin(), links.type_start.end() - 1);
  std::vector<int64_t> level(nodes == 0 ? 1 : *std::max_element(depth.begin(), depth.end()) + 2, 0);
  for (int64_t v = 0; v < nodes; ++v) {
    by_type[place[graph.type[v]]++] = static_cast<int32_t>(v);
    ++level[depth[v] + 1];
  }
  for (size_t d = 1; d < level.size(); ++d) {
    level[d] += level[d - 1];
  }
  Schedule out = new_schedule(graph);
  out.order.resize(nodes);
  for (const int32_t v : by_type) {
    out.order[level[depth[v]]++] = v;
  }
  for (int64_t i = 1; i < nodes; ++i) {
    const int32_t a = out.order[i - 1], b = out.order[i];
    if (depth[a] != depth[b] || graph.type[a] != graph.type[b] || graph.lone[graph.type[b]]) {
      out.start.push_back(i);
    }
  }
  if (nodes > 0) {
    out.start.push_back(nodes);
  }
  return out;
}

Schedule schedule_agenda(const Graph& graph, bool remaining) {
  const std::vector<int32_t> depth = depths(graph);
  const Links links(graph);
  std::vector<int64_t> sum(graph.types, 0), count(graph.types, 0);
  for (int64_t v = 0; v < graph.nodes(); ++v) {
    sum[graph.type[v]] += depth[v];
    ++count[graph.type[v]];
  }
  Frontier frontier(graph, links);
  Schedule out = new_schedule(graph);
  const auto choose = [&] {
    int32_t best = frontier.active().front();
    for (const int32_t type : frontier.active()) {
      // sum[type] / count[type] against sum[best] / count[best], exactly
      const Wide own = Wide(sum[type]) * count[best], other = Wide(sum[best]) * count[type];
      if (own < other || (own == other && type < best)) {
        best = type;
      }
    }
    return best;
  };
  run_all(frontier, &out, choose, [&](int32_t type, std::span<const int32_t> batch) {
    if (remaining) {
      count[type] -= static_cast<int64_t>(batch.size());
      for (const int32_t node : batch) {
        sum[type] -= depth[node];
      }
    }
  });
  return out;
}

Schedule schedule_sufficient(const Graph& graph) {
  const Links links(graph);
  Frontier frontier(graph, links);
  TypedFrontiers typed(graph, links, frontier);
  Schedule out = new_schedule(graph);
  run_all(
      frontier, &out, [&] { return typed.best(frontier, frontier.active()); },
      [&](int32_t type, std::span<const int32_t> batch) { typed.ran(type, batch); });
  return out;
}

Schedule schedule_lookahead(const Graph& graph) {
  const Links links(graph);
  const TypedHeights heights(graph, links);
  Frontier frontier(graph, links);
  TypedFrontiers typed(graph, links, frontier);
  RemainingBound bound(graph, heights);
  Schedule out = new_schedule(graph);
  std::vector<int32_t> lowering;
  const auto choose = [&] {
    const int32_t best = typed.best(frontier, frontier.active());
    if (typed.safe(best, frontier)) {
      return best;
    }
    lowering.clear();
    for (const int32_t type : frontier.active()) {
      if (bound.lowered_by(type, frontier.ready(type))) {
        lowering.push_back(type);
      }
    }
    return lowering.empty() ? best : typed.best(frontier, lowering);
  };
  run_all(frontier, &out, choose, [&](int32_t type, std::span<const int32_t> batch) {
    typed.ran(type, batch);
    bound.ran(type, batch);
  });
  return out;
}

}  // namespace edgeops::batching
