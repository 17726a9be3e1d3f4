// SPDX-License-Identifier: Apache-2.0
#include "simulate.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>

namespace edgeops::offload {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// An entry of a queue. The smallest is served first: older steps, then layers served shallowest first, then arrivals.
struct Item {
  int32_t step;
  int32_t late;   // 0: shallowest first, 1: in order of arrival
  int64_t order;  // the layer, or when it arrived
  int32_t layer;

  bool operator>(const Item& other) const {
    return std::tie(step, late, order) > std::tie(other.step, other.late, other.order);
  }
};

using Queue = std::priority_queue<Item, std::vector<Item>, std::greater<>>;

struct Work {
  Stage stage = kForward;
  int32_t layer = 0, step = 0;
  double start = 0, end = kNever;  // `kNever`: the resource is idle
};

class Simulator {
 public:
  Simulator(const Profile& profile, const Policy& policy, int32_t steps, bool timeline)
      : profile_(profile),
        policy_(policy),
        layers_(profile.layers()),
        steps_(steps),
        timeline_(timeline),
        sent_(layers_, 0),
        through_(layers_, 0),
        applied_(layers_, 0) {
    run_.backward.reserve(steps + 1);
  }

  Run run() {
    // At one time everything that ends then ends before anything starts, so that a queue chooses among all arrivals.
    for (start(); !done_; start()) {
      double next = kNever;
      for (const Work& work : work_) {
        next = std::min(next, work.end);
      }
      now_ = next;
      for (int32_t r = 0; r < kResources; ++r) {
        if (work_[r].end == now_) {
          finish(static_cast<Resource>(r));
        }
      }
    }
    return std::move(run_);
  }

 private:
  void start() {
    if (idle(kCompute)) {
      start_compute();
    }
    for (const Resource r : {kDownLink, kCpu, kUpLink}) {
      Queue& queue = queues_[r];
      if (!idle(r) || queue.empty() || (r == kCpu && gated(queue.top().step)) || (r == kUpLink && full())) {
        continue;
      }
      staged_ += r == kUpLink;
      const Item item = queue.top();
      queue.pop();
      begin(r, static_cast<Stage>(kDown + (r - kDownLink)), item.layer, item.step);
    }
  }

  bool idle(Resource r) const {
    return work_[r].end == kNever;
  }

  bool gated(int32_t step) const {
    return policy_.after_backward && down_ < (step + int64_t{1}) * layers_;
  }

  bool full() const {
    return policy_.slots > 0 && !policy_.serial && staged_ >= policy_.slots;
  }

  void begin(Resource r, Stage stage, int32_t layer, int32_t step) {
    work_[r] = {stage, layer, step, now_, now_ + profile_.seconds[stage][layer]};
  }

  // Compute goes through its stages in one order; before an apply or a forward it may have to wait.
  void start_compute() {
    if (next_ == kApply && applied_[layer_] == step_) {
      next_ = kForward;  // it was applied to make room
    }
    const bool forward = next_ == kApply || next_ == kForward;
    const int32_t needed = step_ - policy_.stale;  // updates that must be through
    if (forward && (through_[layer_] < needed || (policy_.after_backward && up_ < int64_t{needed} * layers_))) {
      if (full() && !arrived_.empty()) {
        begin(kCompute, kApply, arrived_.front(), step_);
      }
      return;
    }
    // one thing at a time: compute goes on when the gradient that it sent has come back
    if (policy_.serial && up_ < submitted_) {
      return;
    }
    if (next_ == kBackward && layer_ == layers_ - 1) {
      run_.backward.push_back(now_);
      if (static_cast<int32_t>(run_.backward.size()) > steps_) {
        done_ = true;
        return;
      }
    }
    begin(kCompute, next_, layer_, step_);
  }

  void finish(Resource r) {
    const Work work = work_[r];
    work_[r].end = kNever;
    if (timeline_ && work.end > work.start) {
      run_.events.push_back({work.stage, work.layer, work.step, work.start, work.end});
    }
    switch (work.stage) {
      case kApply:
        --staged_;
        applied_[work.layer] = work.step;
        arrived_.erase(std::find(arrived_.begin(), arrived_.end(), work.layer));
        break;
      case kForward:
        if (++layer_ == layers_) {
          layer_ = layers_ - 1;
          next_ = kBackward;
        } else {
          next_ = before_forward();
        }
        break;
      case kBackward:
        next_ = kCompress;
        break;
      case kCompress:
        ++submitted_;
        sent_[work.layer] = work.step + 1;
        // the buffer of a layer is free again when its update before is up
        if (through_[work.layer] == work.step) {
          push(kDownLink, work.layer, work.step);
        }
        next_ = kBackward;
        if (--layer_ < 0) {
          layer_ = 0;
          ++step_;
          next_ = before_forward();
        }
        break;
      case kDown:
        ++down_;
        push(kCpu, work.layer, work.step);
        break;
      case kUpdate:
        push(kUpLink, work.layer, work.step);
        break;
      default:  // kUp
        ++up_;
        through_[work.layer] = work.step + 1;
        arrived_.push_back(work.layer);
        if (sent_[work.layer] > work.step + 1) {
          push(kDownLink, work.layer, work.step + 1);
        }
        break;
    }
  }

  Stage before_forward() const {
    return step_ > policy_.stale ? kApply : kForward;
  }

  void push(Resource r, int32_t layer, int32_t step) {
    const bool late = layer >= policy_.latest_first;
    queues_[r].push({step, late, late ? arrivals_++ : layer, layer});
  }

  const Profile& profile_;
  const Policy policy_;
  const int32_t layers_, steps_;
  const bool timeline_;
  std::array<Work, kResources> work_;
  std::array<Queue, kResources> queues_;  // that of compute stays empty
  // by layer: updates compressed, updates up, the step in which the last one was applied
  std::vector<int32_t> sent_, through_, applied_;
  std::vector<int32_t> arrived_;  // layers with updates that are up and not applied, in the order in which they came
  int32_t staged_ = 0;            // those, and the one on its way up
  int64_t submitted_ = 0, down_ = 0, up_ = 0, arrivals_ = 0;
  Stage next_ = kForward;
  int32_t layer_ = 0, step_ = 0;
  double now_ = 0;
  bool done_ = false;
  Run run_;
};

}  // namespace

Run simulate(const Profile& profile, const Policy& policy, int32_t steps, bool timeline) {
  return Simulator(profile, policy, steps, timeline).run();
}

std::vector<double> all_switches(const Profile& profile, int32_t slots) {
  std::vector<double> seconds;
  for (int32_t layer = 0; layer <= profile.layers(); ++layer) {
    // without staleness nothing is left over when a backward starts: every step after the first backward is the same
    const Run run = simulate(profile, {.latest_first = layer, .slots = slots}, 1, false);
    seconds.push_back(run.backward[1] - run.backward[0]);
  }
  return seconds;
}

}  // namespace edgeops::offload
