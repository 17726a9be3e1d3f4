// SPDX-License-Identifier: Apache-2.0
// Vectors given to Python without a copy.
#pragma once

#include <pybind11/numpy.h>

#include <memory>
#include <vector>

namespace edgeops::batching {

// The vector's own memory as an array, which Python may write to only if `writable`.
template <class T>
pybind11::array_t<T> array_of(std::vector<T>&& values, bool writable) {
  namespace py = pybind11;
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  const py::capsule free(owner.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  const auto* held = owner.release();
  py::array_t<T> out(static_cast<py::ssize_t>(held->size()), held->data(), free);
  if (!writable) {
    py::detail::array_proxy(out.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  }
  return out;
}

}  // namespace edgeops::batching
