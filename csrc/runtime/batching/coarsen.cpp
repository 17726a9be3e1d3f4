// SPDX-License-Identifier: Apache-2.0
#include "coarsen.h"

#include <algorithm>
#include <span>

namespace edgeops::batching {
namespace {

constexpr int32_t kNone = -1, kMixed = -2;

std::span<const int32_t> args_of(const Graph& graph, int32_t node) {
  return {
      graph.args.data() + graph.arg_start[node],
      static_cast<size_t>(graph.arg_start[node + 1] - graph.arg_start[node])};
}

bool contains(std::span<const int32_t> nodes, int32_t node) {
  return std::find(nodes.begin(), nodes.end(), node) != nodes.end();
}

// Notes one more case of something that must be the same in all cases.
void agree(int32_t* seen, int32_t now) {
  *seen = *seen == kNone || *seen == now ? now : kMixed;
}

// [nodes], the only consumer; kMixed where there are several, kNone where there is none.
std::vector<int32_t> consumers(const Graph& graph) {
  std::vector<int32_t> consumer(graph.nodes(), kNone);
  for (int32_t v = 0; v < graph.nodes(); ++v) {
    for (const int32_t arg : args_of(graph, v)) {
      agree(&consumer[arg], v);
    }
  }
  return consumer;
}

// The argument whose chain the node may continue, or kMixed.
int32_t continued(const Graph& graph, const std::vector<int32_t>& after, int32_t node) {
  const auto args = args_of(graph, node);
  for (const int32_t arg : args) {
    if (after[graph.type[arg]] == graph.type[node]) {
      const auto known = args_of(graph, arg);
      const bool straight =
          std::all_of(args.begin(), args.end(), [&](int32_t other) { return other == arg || contains(known, other); });
      return straight ? arg : kMixed;
    }
  }
  return kMixed;
}

// [types], the type that follows; kNone where none does.
std::vector<int32_t> types_after(const Graph& graph, const std::vector<int32_t>& consumer) {
  const auto phase = [&](int32_t node) { return graph.phase.empty() ? 0 : graph.phase[node]; };
  std::vector<int32_t> after(graph.types, kNone), before(graph.types, kNone);
  for (int32_t v = 0; v < graph.nodes(); ++v) {
    const int32_t reader = consumer[v];
    const bool good = reader >= 0 && !graph.lone[graph.type[v]] && !graph.lone[graph.type[reader]] &&
                      graph.type[v] != graph.type[reader] && phase(v) == phase(reader);
    agree(&after[graph.type[v]], good ? graph.type[reader] : kMixed);
  }
  for (int32_t v = 0; v < graph.nodes(); ++v) {
    int32_t& own = before[graph.type[v]];
    if (own != kMixed) {
      const int32_t arg = continued(graph, after, v);
      agree(&own, arg < 0 ? kMixed : graph.type[arg]);
    }
  }
  for (int32_t t = 0; t < graph.types; ++t) {
    if (after[t] < 0 || before[after[t]] != t) {
      after[t] = kNone;
    }
  }
  return after;
}

}  // namespace

Coarse coarsen(const Graph& graph) {
  const std::vector<int32_t> consumer = consumers(graph);
  Coarse out{std::make_shared<Graph>(), {}, {}, {}, types_after(graph, consumer)};
  Graph& g = *out.graph;
  std::vector<int32_t> coarse_type(graph.types, kNone);  // of types that begin a chain
  std::vector<uint8_t> follows(graph.types, 0);
  for (const int32_t t : out.type_after) {
    if (t >= 0) {
      follows[t] = 1;
    }
  }
  for (int32_t t = 0; t < graph.types; ++t) {
    if (!follows[t]) {
      coarse_type[t] = g.types++;
      out.head_type.push_back(t);
      g.lone.push_back(graph.lone[t]);
    }
  }
  std::vector<int32_t> chain(graph.nodes());  // [nodes], the coarse node
  out.next.assign(graph.nodes(), kNone);
  g.arg_start.push_back(0);
  for (int32_t v = 0; v < graph.nodes(); ++v) {
    const int32_t type = graph.type[v];
    if (out.type_after[type] >= 0) {
      out.next[v] = consumer[v];
    }
    if (follows[type]) {
      for (const int32_t arg : args_of(graph, v)) {
        if (out.next[arg] == v) {
          chain[v] = chain[arg];
        }
      }
      continue;
    }
    chain[v] = static_cast<int32_t>(g.nodes());
    out.head.push_back(v);
    g.type.push_back(coarse_type[type]);
    for (const int32_t arg : args_of(graph, v)) {
      g.args.push_back(chain[arg]);
    }
    g.arg_start.push_back(static_cast<int64_t>(g.args.size()));
    if (!graph.depth.empty()) {
      g.depth.push_back(graph.depth[v]);
    }
    if (!graph.phase.empty()) {
      g.phase.push_back(graph.phase[v]);
    }
  }
  return out;
}

Schedule expand(const Coarse& coarse, const Schedule& schedule) {
  Schedule out;
  out.order.reserve(coarse.next.size());
  out.start.push_back(0);
  std::vector<int32_t> links;
  for (int64_t b = 0; b < schedule.batches(); ++b) {
    links.clear();
    for (int64_t i = schedule.start[b]; i < schedule.start[b + 1]; ++i) {
      links.push_back(coarse.head[schedule.order[i]]);
    }
    while (links.front() >= 0) {  // chains of one type are equally long
      out.order.insert(out.order.end(), links.begin(), links.end());
      out.start.push_back(static_cast<int64_t>(out.order.size()));
      for (int32_t& v : links) {
        v = coarse.next[v];
      }
    }
  }
  return out;
}

}  // namespace edgeops::batching
