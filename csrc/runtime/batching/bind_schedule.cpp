// SPDX-License-Identifier: Apache-2.0
#include "bind.h"

namespace edgeops::batching {

void bind_schedule(pybind11::module_& m) {}

}  // namespace edgeops::batching
