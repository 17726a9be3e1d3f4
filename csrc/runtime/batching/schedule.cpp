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

// Batches of equal level and type, sorted by level, then type, then node; lone nodes singly. Levels are from 0.
Schedule by_level(const Graph& graph, const std::vector<int32_t>& level) {
  const int64_t nodes = graph.nodes();
  // two stable counting sorts
  std::vector<int64_t> place(graph.types + 1, 0);
  std::vector<int64_t> at(nodes == 0 ? 1 : *std::max_element(level.begin(), level.end()) + 2, 0);
  for (int64_t v = 0; v < nodes; ++v) {
    ++place[graph.type[v] + 1];
    ++at[level[v] + 1];
  }
  for (int32_t t = 0; t < graph.types; ++t) {
    place[t + 1] += place[t];
  }
  for (size_t d = 1; d < at.size(); ++d) {
    at[d] += at[d - 1];
  }
  std::vector<int32_t> by_type(nodes);
  for (int64_t v = 0; v < nodes; ++v) {
    by_type[place[graph.type[v]]++] = static_cast<int32_t>(v);
  }
  Schedule out = new_schedule(graph);
  out.order.resize(nodes);
  for (const int32_t v : by_type) {
    out.order[at[level[v]]++] = v;
  }
  for (int64_t i = 1; i < nodes; ++i) {
    const int32_t a = out.order[i - 1], b = out.order[i];
    if (level[a] != level[b] || graph.type[a] != graph.type[b] || graph.lone[graph.type[b]]) {
      out.start.push_back(i);
    }
  }
  if (nodes > 0) {
    out.start.push_back(nodes);
  }
  return out;
}

// Levels without gaps between them, in the same order.
void close_gaps(std::vector<int64_t>* level) {
  std::vector<int64_t> seen = *level;
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  for (int64_t& x : *level) {
    x = std::lower_bound(seen.begin(), seen.end(), x) - seen.begin();
  }
}

// Appends `nodes[v]` for every node `v` of a schedule of a part.
void append(const Schedule& part, const std::vector<int32_t>& nodes, Schedule* whole) {
  const auto before = static_cast<int64_t>(whole->order.size());
  for (const int32_t v : part.order) {
    whole->order.push_back(nodes[v]);
  }
  for (size_t b = 1; b < part.start.size(); ++b) {
    whole->start.push_back(before + part.start[b]);
  }
}

}  // namespace

Schedule by_phase(const Graph& graph, const std::function<Schedule(const Graph&)>& plan) {
  if (graph.phase.empty()) {
    return plan(graph);
  }
  std::vector<int64_t> phase(graph.phase.begin(), graph.phase.end());
  close_gaps(&phase);
  const int64_t phases = *std::max_element(phase.begin(), phase.end()) + 1;
  std::vector<Graph> parts(phases);
  std::vector<std::vector<int32_t>> nodes(phases);
  std::vector<int32_t> number(graph.nodes());
  for (int64_t v = 0; v < graph.nodes(); ++v) {
    const int64_t p = phase[v];
    Graph& part = parts[p];
    number[v] = static_cast<int32_t>(part.nodes());
    nodes[p].push_back(static_cast<int32_t>(v));
    part.type.push_back(graph.type[v]);
    part.arg_start.push_back(static_cast<int64_t>(part.args.size()));
    for (int64_t e = graph.arg_start[v]; e < graph.arg_start[v + 1]; ++e) {
      if (phase[graph.args[e]] == p) {
        part.args.push_back(number[graph.args[e]]);
      }
    }
  }
  Schedule out = new_schedule(graph);
  for (int64_t p = 0; p < phases; ++p) {
    if (nodes[p].empty()) {
      continue;
    }
    parts[p].types = graph.types;
    parts[p].lone = graph.lone;
    parts[p].arg_start.push_back(static_cast<int64_t>(parts[p].args.size()));
    append(plan(parts[p]), nodes[p], &out);
  }
  return out;
}

std::vector<int64_t> typed_depths(const Graph& graph) {
  return TypedHeights(graph, Links(graph)).bound;
}

Schedule schedule_depth(const Graph& graph) {
  return by_level(graph, depths(graph));
}

Schedule schedule_inline(const Graph& graph) {
  const int64_t nodes = graph.nodes();
  if (graph.depth.empty()) {
    return by_phase(graph, schedule_depth);
  }
  const int64_t depths = *std::max_element(graph.depth.begin(), graph.depth.end()) + int64_t{1};
  const int64_t phases =
      graph.phase.empty() ? 1 : *std::max_element(graph.phase.begin(), graph.phase.end()) + int64_t{1};
  if (phases == 1 && depths <= 2 * nodes) {
    return by_level(graph, graph.depth);
  }
  std::vector<int64_t> level(graph.depth.begin(), graph.depth.end());
  for (size_t v = 0; v < graph.phase.size(); ++v) {
    level[v] += graph.phase[v] * depths;
  }
  if (phases > 2 * nodes / depths) {
    close_gaps(&level);
  }
  return by_level(graph, {level.begin(), level.end()});
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
