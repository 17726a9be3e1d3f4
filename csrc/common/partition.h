// SPDX-License-Identifier: Apache-2.0
// One parallel region per op, work handed out by cost: largest pieces first, small ones in groups.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include <torch/csrc/stable/ops.h>

namespace edgeops {

// Runs body(piece) for every piece, ordered by descending cost; the costs are in nanoseconds, roughly.
// Each piece is computed by exactly one thread, so results do not depend on the number of threads.
// body(const Piece&, worker) may throw; the first exception is rethrown after all workers have stopped.
template <class Piece, class Body>
void run_by_cost(std::vector<Piece>& pieces, const Body& body) {
  if (pieces.empty()) {
    return;
  }
  constexpr double kGroupNs = 20e3;  // a hand-out costs about 50 ns; a group of this cost hides it
  double total = 0;
  for (const Piece& piece : pieces) {
    total += piece.cost;
  }
  const auto workers = static_cast<int64_t>(std::min<double>(torch::stable::get_num_threads(), 1 + total / kGroupNs));
  if (workers <= 1) {
    for (const Piece& piece : pieces) {
      body(piece);
    }
    return;
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.cost > b.cost; });
  const double group = std::min(kGroupNs, total / (8 * static_cast<double>(workers)));
  std::vector<size_t> starts{0};
  double sum = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    sum += pieces[i].cost;
    if (sum >= group || i + 1 == pieces.size()) {
      starts.push_back(i + 1);
      sum = 0;
    }
  }
  std::atomic<size_t> next{0};
  std::exception_ptr error;
  std::mutex guard;
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      try {
        for (size_t g = next.fetch_add(1); g + 1 < starts.size(); g = next.fetch_add(1)) {
          for (size_t i = starts[g]; i < starts[g + 1]; ++i) {
            body(pieces[i]);
          }
        }
      } catch (...) {
        const std::lock_guard<std::mutex> lock(guard);
        error = std::current_exception();
      }
    }
  });
  if (error) {
    std::rethrow_exception(error);
  }
}

}  // namespace edgeops
