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
  // By program: kinds of calls that depend on nothing pending but such kinds, always equally deep, run before all steps
  // wherever they stand in the program, and take no step. A kind counts as one until a call shows that it is not.
  bool hoist = true;
};

class Depths {
 public:
  // What the pending operands of a call are like.
  struct Reads {
    int32_t depth = 0;       // one more than the deepest of the call's own phase; by program, of those with a step
    int32_t level = 0;       // one more than the deepest hoisted
    int32_t last_phase = 0;  // of any
    bool constant = true;    // all of the call's own phase are hoisted
  };

  void keep(DepthRule rule) {
    rule_ = rule;
  }
  bool by_program() const {
    return rule_.program;
  }
  // Phase of a call that has been recorded.
  int32_t phase_of(int64_t node) const {
    return calls_[node].phase();
  }
  // What is flushed is executed: it has no depth any more.
  void restart(int64_t flushed) {
    if (flushed != since_) {
      since_ = flushed;
      step_ = 0;
      for (int32_t& level : level_) {
        level = level == kVaries ? kVaries : kUnseen;
      }
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

  // Enters a phase, at its first step; the answer is for `leave`.
  int64_t enter(int32_t phase) {
    const int64_t before = (int64_t{phase_} << 32) + step_;
    if (phase != phase_) {
      phase_ = phase;
      step_ = 0;
    }
    return before;
  }
  void leave(int64_t before) {
    const auto phase = static_cast<int32_t>(before >> 32);
    if (phase != phase_) {
      phase_ = phase;
      step_ = static_cast<int32_t>(before & 0x7fffffff);
    }
  }

  void read(int32_t node, Reads* reads) const {
    const Call call = calls_[node];
    reads->last_phase = std::max(reads->last_phase, call.phase());
    if (call.phase() == phase_) {
      if (call.hoisted()) {
        reads->level = std::max(reads->level, call.depth() + 1);
      } else {
        reads->depth = std::max(reads->depth, call.depth() + 1);
        reads->constant = false;
      }
    }
  }

  // Gives the next call its depth; `kind` is its variant.
  void add(int32_t kind, const Reads& reads) {
    int32_t depth = reads.depth;
    bool hoisted = false;
    if (rule_.program) {
      hoisted = rule_.hoist && is_constant(kind, reads);
      if (hoisted) {
        depth = reads.level;
      } else {
        depth = std::max(depth, step_);
        step_ = depth + 1;
      }
    }
    calls_.push_back(Call::of(depth, phase_, hoisted));
  }

  // Writes the depths of the calls from `first` on into a graph of them, and their phases where there are several.
  void put(int64_t first, Graph* graph) const {
    const auto count = static_cast<int64_t>(calls_.size()) - first;
    const Call* calls = calls_.data() + first;
    int32_t levels = 0;
    bool several = false;
    for (int64_t i = 0; i < count; ++i) {
      several = several || calls[i].phase() != calls[0].phase();
      levels = std::max(levels, calls[i].hoisted() ? calls[i].depth() + 1 : 0);
    }
    graph->depth.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      graph->depth[i] = calls[i].depth() + (calls[i].hoisted() ? 0 : levels);
    }
    if (several) {
      graph->phase.resize(count);
      for (int64_t i = 0; i < count; ++i) {
        graph->phase[i] = calls[i].phase();
      }
    }
  }

 private:
  // One word, written and read whole: as three members it costs 10 ns more a call.
  struct Call {
    uint64_t word;

    static Call of(int32_t depth, int32_t phase, bool hoisted) {
      return {static_cast<uint64_t>(depth) | static_cast<uint64_t>(phase) << 32 | static_cast<uint64_t>(hoisted) << 63};
    }
    int32_t depth() const {
      return static_cast<int32_t>(word & 0xffffffffu);
    }
    int32_t phase() const {
      return static_cast<int32_t>(word >> 32 & 0x7fffffffu);
    }
    bool hoisted() const {
      return word >> 63 != 0;
    }
  };

  static constexpr int32_t kUnseen = -1, kVaries = -2;

  bool is_constant(int32_t kind, const Reads& reads) {
    if (kind >= static_cast<int32_t>(level_.size())) {
      level_.resize(kind + 1, kUnseen);
    }
    int32_t& level = level_[kind];
    const bool same = level == kUnseen || level == reads.level;
    level = reads.constant && same ? reads.level : kVaries;
    return level != kVaries;
  }

  DepthRule rule_;
  int64_t since_ = 0;  // nodes flushed when counting began
  int32_t step_ = 0;
  int32_t phase_ = 0;
  std::vector<Call> calls_;     // [nodes]
  std::vector<int32_t> level_;  // by variant: the one level of all its calls
};

}  // namespace edgeops::batching
