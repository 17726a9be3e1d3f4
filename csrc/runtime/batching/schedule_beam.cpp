// SPDX-License-Identifier: Apache-2.0
#include "schedule.h"

#include <algorithm>
#include <random>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "schedule_bound.h"
#include "schedule_frontier.h"
#include "schedule_sufficient.h"

namespace edgeops::batching {

namespace {

constexpr int32_t kShare = 20;  // bits of a share

struct Partial {
  Frontier frontier;
  TypedFrontiers typed;
  RemainingBound bound;
  uint64_t ran;  // the set of nodes that ran, as the xor of their marks
  int64_t lost;  // sum over batches of what their share lacks to 1, in units of 2^-kShare
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
  int64_t score, left;
  int32_t parent, type;
  int64_t lost;
  uint64_t ran;

  auto rank() const {
    return std::tie(score, left, parent, type);
  }
};

void add_moves(Partial& from, int32_t parent, const std::vector<uint64_t>& mark, std::vector<Move>& moves) {
  const auto add = [&](int32_t type) {
    const auto batch = from.frontier.ready(type);
    uint64_t ran = from.ran;
    for (const int32_t v : batch) {
      ran ^= mark[v];
    }
    const int64_t left = from.frontier.left() - static_cast<int64_t>(batch.size());
    const int64_t typed = from.typed.size(type, from.frontier);
    const int64_t lost = from.lost + ((typed - static_cast<int64_t>(batch.size())) << kShare) / typed;
    const int64_t bound = from.bound.total() - (from.bound.lowered_by(type, batch) ? 1 : 0);
    moves.push_back({(bound << (kShare + 2)) + lost, left, parent, type, lost, ran});
  };
  const int32_t best = from.typed.best(from.frontier, from.frontier.active());
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
    beam.push_back({std::move(frontier), std::move(typed), RemainingBound(graph, heights), 0, 0, -1});
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
      next.back().lost = move.lost;
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
