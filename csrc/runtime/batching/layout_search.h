// SPDX-License-Identifier: Apache-2.0
// Which operands to give up where not all can be in place.
#pragma once

#include <cstdint>
#include <vector>

#include "arrangement.h"

namespace edgeops::batching {

using Cost = int64_t;

// A copy counts first, then its members.
inline Cost cost_of(size_t members) {
  return (Cost{1} << 32) + static_cast<Cost>(members);
}

struct Choice {
  Operand operand;
  Cost cost;  // of giving it up
};

struct Found {
  std::vector<int32_t> order;
  bool minimal;  // no set of lower cost may be given up
};

// All operands, else the cheapest set to give up that is found with `effort` steps.
Found search(int32_t variables, int32_t batches, const std::vector<Choice>& choices, int64_t effort);

}  // namespace edgeops::batching
