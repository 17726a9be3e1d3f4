// SPDX-License-Identifier: Apache-2.0
// The finite-state-machine policy of ED-Batch, section 2.3: which types are ready decides which type runs.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "graph.h"
#include "schedule_frontier.h"

namespace edgeops::batching {

enum class StateKind : int32_t {
  kBase = 0,  // the types that are ready
  kSort = 1,  // the same, most ready nodes first
  kMax = 2,   // the same, and the most common one
};

// A state is a list of symbols, one a ready type; a symbol stands for the content of a type's signature (its key), in
// the order of the keys, so neither the numbering of types nor the process matters. With several phases, how far the
// graph has run, in `phases` equal parts, comes first.
using State = std::vector<int32_t>;

struct StateHash {
  size_t operator()(const State& state) const;
};

struct Policy {
  StateKind kind = StateKind::kSort;
  int32_t phases = 1;
  std::vector<std::string> keys;                          // ascending
  std::unordered_map<State, int32_t, StateHash> actions;  // state to the symbol that runs
};

struct Training {
  int32_t iterations = 1000;
  double rate = 0.4, exploration = 0.5, decay = 0.9, least_exploration = 0.05;
  int32_t horizon = 10;  // rewards that a return adds up, without bootstrapping
  int32_t check_every = 50;
  uint64_t seed = 1;
};

struct Trained {
  Policy policy;
  int32_t iterations = 0;
  int64_t batches = 0;
};

// Q-learning on one graph until its greedy schedule is within 1 % of the lower bound. `keys` has one entry a type.
Trained train_fsm(
    const Graph& graph, const std::vector<std::string>& keys, StateKind kind, int32_t phases, const Training& how);

// States that the policy never saw, and types whose key it does not know, are decided as schedule_sufficient does.
// `unseen`, where given, counts these decisions.
Schedule schedule_fsm(
    const Graph& graph, const std::vector<std::string>& keys, const Policy& policy, int64_t* unseen = nullptr);

}  // namespace edgeops::batching
