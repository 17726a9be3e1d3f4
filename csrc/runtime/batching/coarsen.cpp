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

// The argument whose chain the node may continue, or kMixed.
int32_t continued(const Graph& graph, const std::vector<int32_t>& after, int32_t node) {
  const auto args = args_of(graph, node);
  if (args.size() == 1) {
    return after[graph.type[args[0]]] == graph.type[node] ? args[0] : kMixed;
  }
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

// Fills `consumer`, the only consumer of a node (kMixed for several, kNone for none), and returns for every type the
// one type of its nodes' only consumers, or kMixed; lone types and edges from phase to phase do not count.
std::vector<int32_t> types_of_consumers(const Graph& graph, std::vector<int32_t>* consumer) {
  const auto nodes = static_cast<int32_t>(graph.nodes());
  consumer->assign(nodes, kNone);
  int32_t* const only = consumer->data();
  const int32_t* const type = graph.type.data();
  for (int32_t v = 0; v < nodes; ++v) {
    for (int64_t e = graph.arg_start[v]; e < graph.arg_start[v + 1]; ++e) {
      int32_t& reader = only[graph.args[e]];
      const bool other = (reader != kNone) & (reader != v);
      reader = other ? kMixed : v;
    }
  }
  std::vector<int32_t> after(graph.types, kNone);
  for (int32_t v = 0; v < nodes; ++v) {
    const int32_t reader = only[v];
    const int32_t now = reader >= 0 ? type[reader] : kMixed;
    int32_t& own = after[type[v]];
    const bool same = (own == kNone) | (own == now);
    own = same ? now : kMixed;
  }
  for (size_t v = 0; v < graph.phase.size(); ++v) {
    const int32_t reader = only[v];
    if (reader >= 0 && graph.phase[v] != graph.phase[reader]) {
      after[type[v]] = kMixed;
    }
  }
  for (int32_t t = 0; t < graph.types; ++t) {
    if (after[t] >= 0 && (graph.lone[t] || graph.lone[after[t]] || after[t] == t)) {
      after[t] = kMixed;
    }
  }
  return after;
}

// [types], the type that follows; kNone where none does.
std::vector<int32_t> types_after(const Graph& graph, std::vector<int32_t>* consumer) {
  std::vector<int32_t> after = types_of_consumers(graph, consumer), before(graph.types, kMixed);
  bool any = false;
  for (const int32_t t : after) {
    if (t >= 0) {
      before[t] = kNone;
      any = true;
    }
  }
  for (int32_t v = 0; any && v < graph.nodes(); ++v) {
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
  std::vector<int32_t> consumer;
  Coarse out{std::make_shared<Graph>(), {}, {}, {}, types_after(graph, &consumer)};
  Graph& g = *out.graph;
  std::vector<int32_t> coarse_type(graph.types, 0);  // kNone for types that follow another
  for (const int32_t t : out.type_after) {
    if (t >= 0) {
      coarse_type[t] = kNone;
    }
  }
  for (int32_t t = 0; t < graph.types; ++t) {
    if (coarse_type[t] != kNone) {
      coarse_type[t] = g.types++;
      out.head_type.push_back(t);
      g.lone.push_back(graph.lone[t]);
    }
  }
  const int64_t nodes = graph.nodes();
  std::vector<int32_t> chain(nodes);  // the coarse node
  out.next.resize(nodes);
  out.head.reserve(nodes);
  g.type.reserve(nodes);
  g.arg_start.reserve(nodes + 1);
  g.args.reserve(graph.args.size());
  g.arg_start.push_back(0);
  for (int32_t v = 0; v < nodes; ++v) {
    const int32_t type = graph.type[v];
    if (coarse_type[type] != kNone) {
      chain[v] = static_cast<int32_t>(out.head.size());
      out.head.push_back(v);
      g.type.push_back(coarse_type[type]);
      for (const int32_t arg : args_of(graph, v)) {
        g.args.push_back(chain[arg]);
      }
      g.arg_start.push_back(static_cast<int64_t>(g.args.size()));
    }
    const bool goes_on = out.type_after[type] >= 0;
    out.next[v] = goes_on ? consumer[v] : kNone;
    if (goes_on) {
      chain[consumer[v]] = chain[v];
    }
  }
  for (const auto member : {&Graph::depth, &Graph::phase}) {
    if (!(graph.*member).empty()) {
      (g.*member).reserve(out.head.size());
      for (const int32_t v : out.head) {
        (g.*member).push_back((graph.*member)[v]);
      }
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
