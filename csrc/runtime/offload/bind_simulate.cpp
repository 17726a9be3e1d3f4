// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "bind.h"
#include "simulate.h"

namespace edgeops::offload {

namespace py = pybind11;

namespace {

using Seconds = py::array_t<double, py::array::c_style | py::array::forcecast>;

Profile profile_of(const Seconds& seconds) {
  if (seconds.ndim() != 2 || seconds.shape(0) != kStages || seconds.shape(1) < 1) {
    throw std::invalid_argument(
        "simulate: seconds must be [7, layers] with a layer; got another shape. Use edgeops.offload.simulate.");
  }
  const auto layers = static_cast<size_t>(seconds.shape(1));
  const double* data = seconds.data();
  for (size_t i = 0; i < kStages * layers; ++i) {
    if (!(std::isfinite(data[i]) && data[i] >= 0)) {
      throw std::invalid_argument(
          "simulate: seconds must be finite and not negative; got " + std::to_string(data[i]) +
          ". Measure that stage again.");
    }
  }
  Profile profile;
  for (size_t s = 0; s < kStages; ++s) {
    profile.seconds[s] = {data + s * layers, layers};
  }
  return profile;
}

template <class T>
py::array_t<T> array_of(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple run(
    const Seconds& seconds, int32_t latest_first, bool after_backward, int32_t stale, bool serial, int32_t slots,
    int32_t steps, bool timeline) {
  const Profile profile = profile_of(seconds);
  if (steps < 1 || stale < 0 || stale > 1 || latest_first < 0 || slots < 0) {
    throw std::invalid_argument(
        "simulate: steps >= 1, stale 0 or 1 and latest_first >= 0 are needed; got " + std::to_string(steps) + ", " +
        std::to_string(stale) + ", " + std::to_string(latest_first) + ". Use edgeops.offload.simulate.");
  }
  Run done;
  {
    const py::gil_scoped_release release;
    done = simulate(profile, {latest_first, after_backward, stale, serial, slots}, steps, timeline);
  }
  py::list events;
  for (const Event& e : done.events) {
    events.append(py::make_tuple(static_cast<int32_t>(e.stage), e.layer, e.step, e.start, e.end));
  }
  return py::make_tuple(array_of(done.backward), events);
}

}  // namespace

void bind_simulate(py::module_& m) {
  m.def(
      "simulate", &run, py::arg("seconds"), py::arg("latest_first"), py::arg("after_backward"), py::arg("stale"),
      py::arg("serial"), py::arg("slots"), py::arg("steps"), py::arg("timeline"),
      "Starts of the backwards, and events (stage, layer, step, start, end).");
  m.def(
      "all_switches",
      [](const Seconds& seconds, int32_t slots) {
        const Profile profile = profile_of(seconds);
        std::vector<double> found;
        {
          const py::gil_scoped_release release;
          found = all_switches(profile, slots);
        }
        return array_of(found);
      },
      py::arg("seconds"), py::arg("slots"), "Steady seconds of a step for every latest_first.");
}

}  // namespace edgeops::offload
