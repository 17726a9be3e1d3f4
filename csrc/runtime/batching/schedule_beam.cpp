// SPDX-License-Identifier: Apache-2.0
#include "schedule_beam.h"

#include <algorithm>
#include <random>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "schedule.h"
#include "schedule_sufficient.h"

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

namespace {

// Depth(G^a) of what has not run, for every a: nodes counted by height.
class RemainingBound {
 public:
  RemainingBound(const Graph& graph, const TypedHeights& heights)
      : heights_(&heights), base_(graph.types), top_(graph.types, 0) {
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
  int64_t total() const {
    return total_;
  }
  // The total once a batch has run.
  int64_t after(int32_t type, std::span<const int32_t> batch) const {
    const int32_t top = top_[type];
    const int64_t gone =
        std::count_if(batch.begin(), batch.end(), [&](int32_t v) { return heights_->height[v] == top; });
    // below the top every height has a node that waits for one above, so at most one step
    return total_ - (gone == count_[base_[type] + top] ? 1 : 0);
  }
  void ran(int32_t type, std::span<const int32_t> batch) {
    for (const int32_t v : batch) {
      --count_[base_[type] + heights_->height[v]];
    }
    for (; top_[type] > 0 && count_[base_[type] + top_[type]] == 0; --top_[type]) {
      --total_;
    }
  }

 private:
  const TypedHeights* heights_;
  std::vector<int64_t> base_;
  std::vector<int32_t> top_;
  std::vector<int32_t> count_;
  int64_t total_ = 0;
};

struct Partial {
  Frontier frontier;
  TypedFrontiers typed;
  RemainingBound bound;
  uint64_t ran;  // the set of nodes that ran, as the xor of their marks
  int64_t step;  // index of its last step, -1 before the first

  void run(int32_t type) {
    const auto batch = frontier.run(type, nullptr);
    typed.ran(type, batch);
    bound.ran(type, batch);
    while (frontier.run_lone(nullptr)) {
    }
  }
};

struct Move {
  int64_t bound, left;
  int32_t parent, type;
  uint64_t ran;

  auto rank() const {
    return std::tie(bound, left, parent, type);
  }
};

void add_moves(const Partial& from, int32_t parent, const std::vector<uint64_t>& mark, std::vector<Move>& moves) {
  const auto add = [&](int32_t type) {
    const auto batch = from.frontier.ready(type);
    uint64_t ran = from.ran;
    for (const int32_t v : batch) {
      ran ^= mark[v];
    }
    const int64_t left = from.frontier.left() - static_cast<int64_t>(batch.size());
    moves.push_back({from.bound.after(type, batch), left, parent, type, ran});
  };
  const int32_t best = from.typed.best(from.frontier);
  if (from.typed.safe(best, from.frontier)) {
    add(best);
    return;
  }
  for (const int32_t type : from.frontier.active()) {
    add(type);
  }
}

// The best `width` moves that lead to different sets of run nodes, best first.
std::vector<Move> selected(std::vector<Move> moves, int32_t width) {
  std::sort(moves.begin(), moves.end(), [](const Move& a, const Move& b) { return a.rank() < b.rank(); });
  std::vector<Move> kept;
  std::unordered_set<uint64_t> seen;
  for (const Move& move : moves) {
    if (static_cast<int32_t>(kept.size()) == width) {
      break;
    }
    if (seen.insert(move.ran).second) {
      kept.push_back(move);
    }
  }
  return kept;
}

}  // namespace

Schedule schedule_beam(const Graph& graph, int32_t width) {
  const Links links(graph);
  const TypedHeights heights(graph, links);
  std::vector<uint64_t> mark(graph.nodes());
  std::mt19937_64 random(1);
  std::generate(mark.begin(), mark.end(), random);

  std::vector<std::pair<int64_t, int32_t>> steps;  // the step before, the type
  std::vector<Partial> beam;
  {
    Frontier frontier(graph, links);
    while (frontier.run_lone(nullptr)) {
    }
    TypedFrontiers typed(graph, links, frontier);
    beam.push_back({std::move(frontier), std::move(typed), RemainingBound(graph, heights), 0, -1});
  }
  int64_t last = -1;
  while (true) {
    // every partial schedule has run as many batches, so the first that is complete has the fewest
    const auto done = std::find_if(beam.begin(), beam.end(), [](const Partial& p) { return p.frontier.left() == 0; });
    if (done != beam.end()) {
      last = done->step;
      break;
    }
    std::vector<Move> moves;
    for (size_t i = 0; i < beam.size(); ++i) {
      add_moves(beam[i], static_cast<int32_t>(i), mark, moves);
    }
    const std::vector<Move> kept = selected(std::move(moves), width);
    std::vector<int32_t> uses(beam.size(), 0);
    for (const Move& move : kept) {
      ++uses[move.parent];
    }
    std::vector<Partial> next;
    next.reserve(kept.size());
    for (const Move& move : kept) {
      Partial& parent = beam[move.parent];
      steps.emplace_back(parent.step, move.type);
      if (--uses[move.parent] == 0) {
        next.push_back(std::move(parent));
      } else {
        next.push_back(parent);
      }
      next.back().run(move.type);
      next.back().ran = move.ran;
      next.back().step = static_cast<int64_t>(steps.size()) - 1;
    }
    beam = std::move(next);
  }
  std::vector<int32_t> sequence;
  for (; last >= 0; last = steps[last].first) {
    sequence.push_back(steps[last].second);
  }
  Frontier frontier(graph, links);
  Schedule out = new_schedule(graph);
  run_all(
      frontier, &out,
      [&] {
        const int32_t type = sequence.back();
        sequence.pop_back();
        return type;
      },
      [](int32_t, std::span<const int32_t>) {});
  return out;
}

}  // namespace edgeops::batching
