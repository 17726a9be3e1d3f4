// SPDX-License-Identifier: Apache-2.0
#include "layout_search.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

namespace edgeops::batching {

namespace {

using Set = std::vector<int32_t>;  // indices of choices, ascending unless said otherwise

// The cheapest set that takes a choice out of every conflict: the least that any order gives up.
class HittingSet {
 public:
  HittingSet(const std::vector<Choice>& choices, const std::vector<Set>& conflicts, int64_t& effort)
      : choices_(choices), conflicts_(conflicts), effort_(effort), hits_(conflicts.size(), 0) {}

  // Nothing cheaper than `bound`, or the effort is spent: none.
  std::optional<Set> below(Cost bound) {
    best_cost_ = bound;
    descend(0);
    return best_;
  }

 private:
  // Recursion as deep as there are conflicts.
  void descend(Cost cost) {
    effort_ -= static_cast<int64_t>(conflicts_.size());
    if (effort_ < 0 || cost + rest() >= best_cost_) {
      return;
    }
    const auto open = std::find(hits_.begin(), hits_.end(), 0);
    if (open == hits_.end()) {
      best_cost_ = cost;
      best_ = taken_;
      std::sort(best_->begin(), best_->end());
      return;
    }
    for (const int32_t choice : conflicts_[static_cast<size_t>(open - hits_.begin())]) {
      hit(choice, 1);
      taken_.push_back(choice);
      descend(cost + choices_[static_cast<size_t>(choice)].cost);
      taken_.pop_back();
      hit(choice, -1);
    }
  }

  void hit(int32_t choice, int by) {
    for (size_t c = 0; c < conflicts_.size(); ++c) {
      if (std::binary_search(conflicts_[c].begin(), conflicts_[c].end(), choice)) {
        hits_[c] += by;
      }
    }
  }

  // A lower bound of what is still to pay: open conflicts without a common choice.
  Cost rest() const {
    Cost sum = 0;
    std::vector<bool> used(choices_.size(), false);
    for (size_t c = 0; c < conflicts_.size(); ++c) {
      const Set& conflict = conflicts_[c];
      if (hits_[c] > 0 || std::any_of(conflict.begin(), conflict.end(), [&](int32_t i) { return used[i]; })) {
        continue;
      }
      Cost least = choices_[conflict[0]].cost;
      for (const int32_t i : conflict) {
        used[i] = true;
        least = std::min(least, choices_[i].cost);
      }
      sum += least;
    }
    return sum;
  }

  const std::vector<Choice>& choices_;
  const std::vector<Set>& conflicts_;
  int64_t& effort_;
  std::vector<int> hits_;
  Set taken_;
  Cost best_cost_ = 0;
  std::optional<Set> best_;
};

class Search {
 public:
  Search(int32_t variables, int32_t batches, const std::vector<Choice>& choices, int64_t effort)
      : empty_(variables, batches), choices_(choices), effort_(effort) {}

  Found run() {
    Set all(choices_.size());
    std::iota(all.begin(), all.end(), 0);
    if (auto order = arrange(all)) {
      return {*order, true};
    }
    Set order = all;
    greedy(order);
    const auto size = [&](int32_t i) { return choices_[i].operand.variables.size(); };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return size(a) < size(b); });
    greedy(order);
    std::reverse(order.begin(), order.end());
    greedy(order);
    const bool minimal = improve(all);
    return {best_, minimal};
  }

 private:
  std::optional<std::vector<int32_t>> arrange(const Set& set) {
    Arrangement arrangement = empty_;
    return add_all(arrangement, set) ? std::optional(arrangement.order()) : std::nullopt;
  }

  bool add_all(Arrangement& arrangement, const Set& set) {
    const int64_t before = arrangement.steps();
    const bool demanded =
        std::all_of(set.begin(), set.end(), [&](int32_t i) { return arrangement.demand(choices_[i].operand); });
    const bool possible = demanded && arrangement.close();
    effort_ -= arrangement.steps() - before;
    return possible;
  }

  bool add(Arrangement& arrangement, int32_t choice) {
    return add_all(arrangement, {choice});
  }

  // Takes choices one by one where they still fit, as long as effort is left.
  void greedy(const Set& order) {
    Arrangement arrangement = empty_;
    Cost cost = 0;
    for (const int32_t choice : order) {
      if (effort_ > 0) {
        Arrangement next = arrangement;
        if (add(next, choice)) {
          arrangement = std::move(next);
          continue;
        }
      }
      cost += choices_[choice].cost;
    }
    if (best_.empty() || cost < best_cost_) {
      best_ = arrangement.order();
      best_cost_ = cost;
    }
  }

  // Gathers conflicts (smallest sets that do not fit together) until the cheapest way to resolve them all fits, or
  // costs as much as what was found. True: proven.
  bool improve(const Set& all) {
    std::vector<Set> conflicts;
    while (effort_ > 0) {
      const std::optional<Set> given_up = HittingSet(choices_, conflicts, effort_).below(best_cost_);
      if (!given_up) {
        return effort_ > 0;
      }
      Set kept;
      std::set_difference(all.begin(), all.end(), given_up->begin(), given_up->end(), std::back_inserter(kept));
      bool fits = true;
      while (effort_ > 0) {
        if (auto order = arrange(kept)) {
          if (fits) {
            best_ = *order;
            return true;
          }
          break;
        }
        fits = false;
        Set conflict = conflict_in(kept);
        if (conflict.empty()) {
          return false;
        }
        Set rest;
        std::set_difference(kept.begin(), kept.end(), conflict.begin(), conflict.end(), std::back_inserter(rest));
        kept = std::move(rest);
        conflicts.push_back(std::move(conflict));
      }
    }
    return false;
  }

  // A set that does not fit and whose every part does, out of one that does not fit; empty where effort ends before.
  Set conflict_in(Set candidates) {
    Set core;
    while (true) {
      Arrangement arrangement = empty_;
      if (!add_all(arrangement, core)) {
        break;
      }
      size_t i = 0;
      while (i < candidates.size() && effort_ > 0 && add(arrangement, candidates[i])) {
        ++i;
      }
      if (i == candidates.size() || effort_ <= 0) {
        return {};
      }
      core.push_back(candidates[i]);
      candidates.resize(i);
    }
    std::sort(core.begin(), core.end());
    return core;
  }

  const Arrangement empty_;
  const std::vector<Choice>& choices_;
  int64_t effort_;
  std::vector<int32_t> best_;
  Cost best_cost_ = 0;
};

}  // namespace

Found search(int32_t variables, int32_t batches, const std::vector<Choice>& choices, int64_t effort) {
  return Search(variables, batches, choices, effort).run();
}

}  // namespace edgeops::batching
