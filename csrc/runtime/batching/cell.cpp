// SPDX-License-Identifier: Apache-2.0
#include "cell.h"

#include <algorithm>
#include <limits>
#include <set>
#include <unordered_map>
#include <utility>

namespace edgeops::batching {

namespace {

using Nodes = std::vector<int32_t>;
using Bits = std::vector<bool>;
using Sequence = std::vector<Nodes>;

constexpr size_t kLayouts = 32;  // sequences of equal length whose layouts are compared

// All ready operations of one type.
struct Candidate {
  int32_t type;
  Nodes ready;
  int32_t sources;  // operations left that wait for no other of their type
};

class Sequences {
 public:
  Sequences(const Cell& cell, int64_t effort)
      : cell_(cell), size_(static_cast<int32_t>(cell.type.size())), effort_(effort), done_(size_, false) {
    types_ = size_ == 0 ? 0 : *std::max_element(cell.type.begin(), cell.type.end()) + 1;
    before_.assign(size_, Bits(size_, false));
    for (int32_t v = 0; v < size_; ++v) {
      for (const int32_t a : cell.args[v]) {
        if (a < 0 || a >= size_) {
          continue;
        }
        before_[v][a] = true;
        for (int32_t u = 0; u < a; ++u) {
          before_[v][u] = before_[v][u] || before_[a][u];
        }
      }
    }
  }

  // The sequence of the least number of batches found.
  Sequence shortest() {
    descend();
    fewest_ = effort_ > 0;
    return found_.front();
  }

  // After that: sequences as short that differ in which operations run together; the first is the one above.
  const std::vector<Sequence>& ties() {
    ties_ = true;
    effort_ = std::max<int64_t>(effort_, 0) / 4;
    found_.resize(1);
    distinct_ = {batches_of(found_[0])};
    descend();
    return found_;
  }

  bool fewest() const {
    return fewest_;
  }

 private:
  // Depth at most the number of operations.
  void descend() {
    const int64_t rest = remaining();
    if (rest == 0) {
      keep();
      return;
    }
    const auto length = static_cast<int64_t>(sequence_.size());
    const bool hopeless = length + rest >= shortest_ + (ties_ ? 1 : 0);
    const bool spent = (effort_ -= int64_t{1} + size_ * int64_t{size_} / 8) < 0 && !found_.empty();
    if (hopeless || spent || found_.size() >= kLayouts || !improves()) {
      return;
    }
    for (const Candidate& candidate : candidates()) {
      mark(candidate.ready, true);
      sequence_.push_back(candidate.ready);
      descend();
      sequence_.pop_back();
      mark(candidate.ready, false);
    }
  }

  void mark(const Nodes& nodes, bool done) {
    for (const int32_t v : nodes) {
      done_[v] = done;
    }
  }

  // While the least number is sought: whether these operations were done in fewer batches than ever. Among ties:
  // whether they were not done in these batches before, in another order.
  bool improves() {
    if (ties_) {
      return partial_.insert(batches_of(sequence_)).second;
    }
    const auto [at, fresh] = seen_.try_emplace(done_, sequence_.size());
    if (!fresh && at->second <= sequence_.size()) {
      return false;
    }
    at->second = sequence_.size();
    return true;
  }

  void keep() {
    const auto length = static_cast<int64_t>(sequence_.size());
    if (length < shortest_) {
      shortest_ = length;
      found_.clear();
    }
    if (distinct_.insert(batches_of(sequence_)).second || found_.empty()) {
      found_.push_back(sequence_);
    }
  }

  static Sequence batches_of(Sequence sequence) {
    std::sort(sequence.begin(), sequence.end());
    return sequence;
  }

  // At least so many batches: the longest chain of every type among what is left.
  int64_t remaining() const {
    Nodes chain(size_, 0);
    Nodes longest(types_, 0);
    for (int32_t v = 0; v < size_; ++v) {
      if (done_[v]) {
        continue;
      }
      for (int32_t u = 0; u < v; ++u) {
        if (!done_[u] && cell_.type[u] == cell_.type[v] && before_[v][u]) {
          chain[v] = std::max(chain[v], chain[u]);
        }
      }
      longest[cell_.type[v]] = std::max(longest[cell_.type[v]], ++chain[v]);
    }
    int64_t sum = 0;
    for (const int32_t depth : longest) {
      sum += depth;
    }
    return sum;
  }

  // Types that are ready, the most complete first. A type whose operations that wait for none of their kind are all
  // ready loses no batch by running now: it is the only candidate, unless ties are sought.
  std::vector<Candidate> candidates() const {
    std::vector<Candidate> all(types_);
    for (int32_t v = 0; v < size_; ++v) {
      if (done_[v]) {
        continue;
      }
      Candidate& candidate = all[cell_.type[v]];
      candidate.type = cell_.type[v];
      bool ready = true;
      bool source = true;
      for (int32_t u = 0; u < v; ++u) {
        if (!done_[u] && before_[v][u]) {
          ready = false;
          source = source && cell_.type[u] != cell_.type[v];
        }
      }
      candidate.sources += source ? 1 : 0;
      if (ready) {
        candidate.ready.push_back(v);
      }
    }
    std::erase_if(all, [](const Candidate& c) { return c.ready.empty(); });
    const auto share = [](const Candidate& c) { return static_cast<double>(c.ready.size()) / c.sources; };
    std::stable_sort(
        all.begin(), all.end(), [&](const Candidate& a, const Candidate& b) { return share(a) > share(b); });
    if (!ties_ && !all.empty() && static_cast<int32_t>(all[0].ready.size()) == all[0].sources) {
      all.resize(1);
    }
    return all;
  }

  const Cell& cell_;
  int32_t size_;
  int32_t types_ = 0;
  int64_t effort_;
  int64_t shortest_ = std::numeric_limits<int32_t>::max();
  bool ties_ = false;
  bool fewest_ = false;
  std::vector<Bits> before_;  // of each operation: those it needs, directly or not
  Bits done_;
  Sequence sequence_;
  std::vector<Sequence> found_;
  std::set<Sequence> distinct_;  // of those found
  std::set<Sequence> partial_;   // beginnings of ties
  std::unordered_map<Bits, size_t> seen_;
};

std::vector<Batch> operands_of(const Cell& cell, const Sequence& sequence) {
  std::vector<Batch> batches;
  for (const Nodes& members : sequence) {
    Batch& batch = batches.emplace_back(Batch{members});
    for (size_t slot = 0; slot < cell.args[members[0]].size(); ++slot) {
      Nodes& operand = batch.emplace_back();
      for (const int32_t v : members) {
        operand.push_back(cell.args[v][slot]);
      }
    }
  }
  return batches;
}

}  // namespace

CellPlan plan_cell(const Cell& cell, int64_t effort) {
  const auto variables = static_cast<int32_t>(cell.type.size()) + cell.inputs;
  Sequences sequences(cell, effort / 2);
  CellPlan best;
  best.batches = sequences.shortest();
  best.layout = plan_layout(variables, operands_of(cell, best.batches), effort / 4);
  best.fewest = sequences.fewest();
  if (best.layout.copies == 0) {
    return best;
  }
  const std::vector<Sequence>& ties = sequences.ties();
  for (size_t i = 1; i < ties.size(); ++i) {
    Layout layout = plan_layout(variables, operands_of(cell, ties[i]), effort / 4 / static_cast<int64_t>(ties.size()));
    if (std::pair(layout.copies, layout.copied) < std::pair(best.layout.copies, best.layout.copied)) {
      best.batches = ties[i];
      best.layout = std::move(layout);
    }
  }
  return best;
}

}  // namespace edgeops::batching
