// SPDX-License-Identifier: Apache-2.0
#include "schedule_fsm.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <random>
#include <utility>

#include "schedule.h"
#include "schedule_sufficient.h"

namespace edgeops::batching {
namespace {

constexpr int32_t kUnknown = -1;

// Symbols of a graph's types and back.
struct Symbols {
  std::vector<int32_t> of_type, type;

  Symbols(const std::vector<std::string>& keys, const std::vector<std::string>& known)
      : of_type(keys.size(), kUnknown), type(known.size(), -1) {
    for (size_t t = 0; t < keys.size(); ++t) {
      const auto at = std::lower_bound(known.begin(), known.end(), keys[t]);
      if (at != known.end() && *at == keys[t]) {
        of_type[t] = static_cast<int32_t>(at - known.begin());
        type[of_type[t]] = static_cast<int32_t>(t);
      }
    }
  }
};

// The state before a decision; false where a ready type has no symbol.
bool encode(
    const Frontier& frontier, const Symbols& symbols, StateKind kind, int32_t phases, int64_t nodes, State& state) {
  state.clear();
  for (const int32_t type : frontier.active()) {
    state.push_back(symbols.of_type[type]);
    if (state.back() == kUnknown) {
      return false;
    }
  }
  const auto before = [&](int32_t a, int32_t b) {
    const int64_t more = frontier.ready_count(symbols.type[a]) - frontier.ready_count(symbols.type[b]);
    return more > 0 || (more == 0 && a < b);
  };
  if (kind == StateKind::kSort) {
    std::sort(state.begin(), state.end(), before);
  } else {
    std::sort(state.begin(), state.end());
  }
  if (kind == StateKind::kMax) {
    state.push_back(*std::min_element(state.begin(), state.end(), before));
  }
  if (phases > 1) {
    state.insert(state.begin(), static_cast<int32_t>((nodes - frontier.left()) * phases / nodes));
  }
  return true;
}

class Learner {
 public:
  Learner(const Graph& graph, const std::vector<std::string>& keys, StateKind kind, int32_t phases, const Training& how)
      : graph_(graph), links_(graph), keys_(keys), how_(how), random_(how.seed), exploration_(how.exploration) {
    policy_.kind = kind;
    policy_.phases = phases;
    policy_.keys = keys;
    std::sort(policy_.keys.begin(), policy_.keys.end());
  }

  Trained learn() {
    const Symbols symbols(keys_, policy_.keys);
    const Frontier first(graph_, links_);
    const TypedFrontiers first_typed(graph_, links_, first);
    int64_t bound = 0;
    for (const int64_t depth : typed_depths(graph_)) {
      bound += depth;
    }
    Trained best;
    best.batches = std::numeric_limits<int64_t>::max();
    for (int32_t it = 1; it <= how_.iterations; ++it) {
      episode(symbols, first, first_typed);
      exploration_ = std::max(how_.least_exploration, how_.decay * exploration_);
      if (it % how_.check_every == 0 || it == how_.iterations) {
        best.iterations = it;
        Policy policy = greedy();
        const int64_t batches = schedule_fsm(graph_, keys_, policy).batches();
        if (batches < best.batches) {
          best.batches = batches;
          best.policy = std::move(policy);
        }
        if (static_cast<double>(best.batches) < 1.01 * static_cast<double>(bound)) {
          break;
        }
      }
    }
    return best;
  }

 private:
  struct Entry {
    std::vector<int32_t> symbols;  // the choices, in the order of the state
    std::vector<double> value;

    size_t argmax() const {
      return std::max_element(value.begin(), value.end()) - value.begin();
    }
  };
  struct Decision {
    Entry* entry;
    size_t choice;
    double reward;
  };

  double uniform() {
    return static_cast<double>(random_() >> 11) * 0x1p-53;
  }

  void episode(const Symbols& symbols, const Frontier& first, const TypedFrontiers& first_typed) {
    Frontier frontier = first;
    TypedFrontiers typed = first_typed;
    std::vector<Decision> log;
    State state;
    run_all(
        frontier, nullptr,
        [&] {
          encode(frontier, symbols, policy_.kind, policy_.phases, graph_.nodes(), state);
          const auto [at, is_new] = table_.try_emplace(state);
          Entry& entry = at->second;
          if (is_new) {
            const auto begin = state.begin() + (policy_.phases > 1);
            entry.symbols.assign(begin, state.end() - (policy_.kind == StateKind::kMax));
            entry.value.assign(entry.symbols.size(), 0.0);
          }
          const size_t choices = entry.symbols.size();
          const size_t choice = uniform() < exploration_ ? static_cast<size_t>(uniform() * choices) : entry.argmax();
          const int32_t type = symbols.type[entry.symbols[choice]];
          const double share = static_cast<double>(frontier.ready_count(type)) / typed.size(type, frontier);
          log.push_back({&entry, choice, share - 1.0});
          return type;
        },
        [&](int32_t type, std::span<const int32_t> batch) { typed.ran(type, batch); });
    for (size_t i = 0; i < log.size(); ++i) {
      double sum = 0;
      for (size_t j = i; j < std::min(log.size(), i + how_.horizon); ++j) {
        sum += log[j].reward;
      }
      double& value = log[i].entry->value[log[i].choice];
      value += how_.rate * (sum - value);
    }
  }

  Policy greedy() const {
    Policy policy = policy_;
    for (const auto& [state, entry] : table_) {
      policy.actions.emplace(state, entry.symbols[entry.argmax()]);
    }
    return policy;
  }

  const Graph& graph_;
  const Links links_;
  const std::vector<std::string>& keys_;
  const Training how_;
  std::mt19937_64 random_;
  double exploration_;
  Policy policy_;
  std::unordered_map<State, Entry, StateHash> table_;  // entries never move
};

}  // namespace

size_t StateHash::operator()(const State& state) const {
  uint64_t hash = 0x9e3779b97f4a7c15u + state.size();
  for (const int32_t symbol : state) {
    hash = (hash ^ static_cast<uint32_t>(symbol)) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

Trained train_fsm(
    const Graph& graph, const std::vector<std::string>& keys, StateKind kind, int32_t phases, const Training& how) {
  return Learner(graph, keys, kind, phases, how).learn();
}

Schedule schedule_fsm(const Graph& graph, const std::vector<std::string>& keys, const Policy& policy, int64_t* unseen) {
  const Links links(graph);
  const Symbols symbols(keys, policy.keys);
  Frontier frontier(graph, links);
  std::optional<TypedFrontiers> typed;  // from the first unseen state on
  Schedule out = new_schedule(graph);
  State state;
  run_all(
      frontier, &out,
      [&] {
        if (encode(frontier, symbols, policy.kind, policy.phases, graph.nodes(), state)) {
          const auto at = policy.actions.find(state);
          if (at != policy.actions.end()) {
            return symbols.type[at->second];
          }
        }
        if (unseen != nullptr) {
          ++*unseen;
        }
        if (!typed) {
          typed.emplace(graph, links, frontier);
        }
        return typed->best(frontier, frontier.active());
      },
      [&](int32_t type, std::span<const int32_t> batch) {
        if (typed) {
          typed->ran(type, batch);
        }
      });
  return out;
}

}  // namespace edgeops::batching
