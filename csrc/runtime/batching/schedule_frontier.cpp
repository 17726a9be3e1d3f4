// SPDX-License-Identifier: Apache-2.0
#include "schedule_frontier.h"

#include <algorithm>

namespace edgeops::batching {

Links::Links(const Graph& graph) {
  const int64_t nodes = graph.nodes();
  out_start.assign(nodes + 1, 0);
  type_start.assign(graph.types + 1, 0);
  out.resize(graph.args.size());
  for (const int32_t arg : graph.args) {
    ++out_start[arg + 1];
  }
  for (int64_t v = 0; v < nodes; ++v) {
    ++type_start[graph.type[v] + 1];
    out_start[v + 1] += out_start[v];
    max_in_degree = std::max(max_in_degree, static_cast<int32_t>(graph.arg_start[v + 1] - graph.arg_start[v]));
  }
  for (int32_t t = 0; t < graph.types; ++t) {
    type_start[t + 1] += type_start[t];
  }
  // filled from the last consumer down: out_start ends up as the starts again, consumers in ascending order
  std::vector<int64_t> end(out_start.begin() + 1, out_start.end());
  for (int64_t v = nodes - 1; v >= 0; --v) {
    for (int64_t e = graph.arg_start[v + 1] - 1; e >= graph.arg_start[v]; --e) {
      out[--end[graph.args[e]]] = static_cast<int32_t>(v);
    }
  }
}

Frontier::Frontier(const Graph& graph, const Links& links)
    : graph_(&graph),
      links_(&links),
      waiting_(graph.nodes()),
      ready_(graph.nodes()),
      head_(links.type_start.begin(), links.type_start.end() - 1),
      tail_(head_),
      place_(graph.types, -1),
      left_(graph.nodes()) {
  for (int64_t v = 0; v < graph.nodes(); ++v) {
    waiting_[v] = static_cast<int32_t>(graph.arg_start[v + 1] - graph.arg_start[v]);
    if (waiting_[v] == 0) {
      push(static_cast<int32_t>(v));
    }
  }
}

void Frontier::push(int32_t node) {
  const int32_t type = graph_->type[node];
  if (graph_->lone[type]) {
    lone_.push_back(node);
    return;
  }
  if (tail_[type] == head_[type]) {
    place_[type] = static_cast<int32_t>(active_.size());
    active_.push_back(type);
  }
  ready_[tail_[type]++] = node;
}

void Frontier::finish(std::span<const int32_t> batch, Schedule* out) {
  left_ -= static_cast<int64_t>(batch.size());
  if (out != nullptr) {
    out->order.insert(out->order.end(), batch.begin(), batch.end());
    out->start.push_back(static_cast<int64_t>(out->order.size()));
  }
  for (const int32_t node : batch) {
    waiting_[node] = -1;
    for (int64_t e = links_->out_start[node]; e < links_->out_start[node + 1]; ++e) {
      if (--waiting_[links_->out[e]] == 0) {
        push(links_->out[e]);
      }
    }
  }
}

std::span<const int32_t> Frontier::run(int32_t type, Schedule* out) {
  const auto batch = ready(type);
  // off the list first: the batch may make nodes of its own type ready
  head_[type] = tail_[type];
  const int32_t last = active_.back();
  active_[place_[type]] = last;
  place_[last] = place_[type];
  active_.pop_back();
  finish(batch, out);
  return batch;
}

bool Frontier::run_lone(Schedule* out) {
  if (lone_head_ == lone_.size()) {
    return false;
  }
  const int32_t node = lone_[lone_head_++];
  finish({&node, 1}, out);
  return true;
}

Schedule new_schedule(const Graph& graph) {
  Schedule out;
  out.order.reserve(graph.nodes());
  out.start.assign(1, 0);
  return out;
}

}  // namespace edgeops::batching
