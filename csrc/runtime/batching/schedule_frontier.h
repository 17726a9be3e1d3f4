// SPDX-License-Identifier: Apache-2.0
// The loop that every scheduler shares: ready nodes by type, run whole, consumers become ready.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "graph.h"

namespace edgeops::batching {

// What schedulers read besides the graph: consumers of every node (once per edge), nodes grouped by type.
struct Links {
  explicit Links(const Graph& graph);

  std::vector<int64_t> out_start;   // [V + 1]
  std::vector<int32_t> out;         // [edges]
  std::vector<int64_t> type_start;  // [types + 1], prefix sums of the number of nodes of a type
  int32_t max_in_degree = 0;

  int64_t count(int32_t type) const {
    return type_start[type + 1] - type_start[type];
  }
};

// Ready nodes. A batch holds all ready nodes of a type in the order in which they became ready; nodes of lone types run
// one at a time and before anything else.
class Frontier {
 public:
  Frontier(const Graph& graph, const Links& links);

  const std::vector<int32_t>& active() const {  // types with ready nodes, in no particular order, lone ones left out
    return active_;
  }
  std::span<const int32_t> ready(int32_t type) const {
    return {ready_.data() + head_[type], static_cast<size_t>(tail_[type] - head_[type])};
  }
  int64_t ready_count(int32_t type) const {
    return tail_[type] - head_[type];
  }
  int64_t left(int32_t type) const {  // nodes of the type that have not run
    return links_->type_start[type + 1] - head_[type];
  }
  int64_t left() const {
    return left_;
  }
  bool ran(int32_t node) const {
    return waiting_[node] < 0;
  }

  // Runs the ready nodes of a type. The span stays valid as long as the frontier lives.
  std::span<const int32_t> run(int32_t type, Schedule* out);
  // Runs the next ready lone node; false where there is none.
  bool run_lone(Schedule* out);

 private:
  void finish(std::span<const int32_t> batch, Schedule* out);
  void push(int32_t node);

  const Graph* graph_;
  const Links* links_;
  std::vector<int32_t> waiting_;      // edges from nodes that have not run; -1 for nodes that have
  std::vector<int32_t> ready_;        // one segment a type
  std::vector<int64_t> head_, tail_;  // of the segments
  std::vector<int32_t> active_, place_;
  std::vector<int32_t> lone_;
  size_t lone_head_ = 0;
  int64_t left_;
};

// Runs the whole graph: `choose()` names an active type, `ran(type, batch)` hears of every batch but lone ones.
template <class Choose, class Ran>
void run_all(Frontier& frontier, Schedule* out, Choose&& choose, Ran&& ran) {
  while (true) {
    while (frontier.run_lone(out)) {
    }
    if (frontier.active().empty()) {
      return;
    }
    const int32_t type = choose();
    ran(type, frontier.run(type, out));
  }
}

// An empty schedule with room for the nodes of a graph.
Schedule new_schedule(const Graph& graph);

}  // namespace edgeops::batching
