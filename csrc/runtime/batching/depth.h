// SPDX-License-Identifier: Apache-2.0
// Depths and phases of calls, kept while they are recorded: a schedule by depth needs no walk over the graph.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "graph.h"

namespace edgeops::batching {

// How depth is counted. By data: one more than the deepest pending operand. By program: every call takes the next step
// of its program, as code without knowledge of the data flow would count, and never less than the data asks for.
struct DepthRule {
  bool program = false;
  // By program: calls that depend on nothing pending but such calls have a depth that is a constant of their kind
  // wherever they stand in the program, and take no step. A kind keeps the first depth it was seen at.
  bool hoist = true;
};

class Depths {
 public:
  // What the pending operands of a call are like.
  struct Reads {
    int32_t depth = 0;       // one more than the deepest of the call's own phase
    int32_t last_phase = 0;  // of any
    bool constant = true;    // all of the call's own phase are hoisted
  };

  void keep(DepthRule rule) {
    rule_ = rule;
  }
  // What is flushed is executed: it has no depth any more.
  void restart(int64_t flushed) {
    if (flushed != since_) {
      since_ = flushed;
      step_ = 0;
      constant_.clear();
    }
  }
  int32_t step() const {
    return step_;
  }
  void set_step(int32_t step) {
    step_ = step;
  }
  int32_t phase() const {
    return phase_;
  }
  void set_phase(int32_t phase) {
    phase_ = phase;
  }

  void read(int32_t node, Reads* reads) const {
    const Call& call = calls_[node];
    reads->last_phase = std::max(reads->last_phase, call.phase);
    if (call.phase == phase_) {
      reads->depth = std::max(reads->depth, call.depth + 1);
      reads->constant = reads->constant && call.hoisted;
    }
  }

  // Gives the next call its depth; `kind` is its variant.
  void add(int32_t kind, const Reads& reads) {
    Call call{reads.depth, phase_, false};
    if (rule_.program) {
      call.hoisted = rule_.hoist && reads.constant && is_constant(kind, reads.depth);
      if (!call.hoisted) {
        call.depth = std::max(reads.depth, step_);
        step_ = call.depth + 1;
      }
    }
    calls_.push_back(call);
  }

  // Writes the depths of the calls from `first` on into a graph of them, and their phases where there are several.
  void put(int64_t first, Graph* graph) const {
    const auto count = static_cast<int64_t>(calls_.size()) - first;
    graph->depth.resize(count);
    bool several = false;
    for (int64_t i = 0; i < count; ++i) {
      graph->depth[i] = calls_[first + i].depth;
      several = several || calls_[first + i].phase != calls_[first].phase;
    }
    if (several) {
      graph->phase.resize(count);
      for (int64_t i = 0; i < count; ++i) {
        graph->phase[i] = calls_[first + i].phase;
      }
    }
  }

 private:
  struct Call {
    int32_t depth, phase;
    bool hoisted;
  };

  bool is_constant(int32_t kind, int32_t depth) {
    if (kind >= static_cast<int32_t>(constant_.size())) {
      constant_.resize(kind + 1, -1);
    }
    int32_t& first = constant_[kind];
    if (first < 0) {
      first = depth;
    }
    return first == depth;
  }

  DepthRule rule_;
  int64_t since_ = 0;  // nodes flushed when counting began
  int32_t step_ = 0;
  int32_t phase_ = 0;
  std::vector<Call> calls_;        // [nodes]
  std::vector<int32_t> constant_;  // by variant, -1: not seen
};

}  // namespace edgeops::batching
