// SPDX-License-Identifier: Apache-2.0
// Event simulation of offloaded training: LSP-Offload (AAAI 2025), appendix, algorithm 3 and equations 1 and 4.
//
// Four serial resources: compute, the link down, the CPU, the link up. A step is, on compute, for every layer its
// waiting update applied and its forward, then for every layer from the last its backward and its compression; the
// compressed gradient goes down, is made an update on the CPU, goes up, and waits there for the next forward.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace edgeops::offload {

enum Stage : int32_t { kForward, kBackward, kCompress, kDown, kUpdate, kUp, kApply, kStages };
enum Resource : int32_t { kCompute, kDownLink, kCpu, kUpLink, kResources };

// Seconds of each stage of each layer, finite and not negative. Layers count from 0 in the order of the forward.
struct Profile {
  std::array<std::span<const double>, kStages> seconds;

  int32_t layers() const {
    return static_cast<int32_t>(seconds[kForward].size());
  }
};

struct Policy {
  // Layers below this one are served before others, the shallowest first. The others come in order of arrival.
  int32_t latest_first = 0;
  bool after_backward = false;  // no update before all gradients of the step are down; no forward before all are up
  int32_t stale = 0;            // 1: a forward sees the updates of the step before the last one
  bool serial = false;          // one thing at a time
  // Updates that lie on the device at once, 0 for any number. Where compute has to wait and all are taken, it applies
  // the one that came first to make room.
  int32_t slots = 0;
};

struct Event {
  int32_t stage, layer, step;
  double start, end;
};

struct Run {
  std::vector<double> backward;  // when the backward of each step starts, one more than steps
  std::vector<Event> events;     // if asked for, by end; without those that take no time
};

// Runs `steps` steps and the forward after them, from rest.
Run simulate(const Profile& profile, const Policy& policy, int32_t steps, bool timeline);

// Seconds of a step in the steady state for every `latest_first` from 0 to the number of layers.
std::vector<double> all_switches(const Profile& profile, int32_t slots);

}  // namespace edgeops::offload
