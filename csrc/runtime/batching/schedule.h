// SPDX-License-Identifier: Apache-2.0
// Schedulers: which type runs next. All run the whole ready set of a type; lone nodes run singly and first.
#pragma once

#include <cstdint>
#include <vector>

#include "graph.h"

namespace edgeops::batching {

// [types]: the longest chain counted in nodes of the type, for lone types the number of nodes. No schedule has fewer
// batches of the type.
std::vector<int64_t> typed_depths(const Graph& graph);

Schedule schedule_depth(const Graph& graph);
// Smallest average depth first: of all nodes of the type, or of those that have not run. Ties: the smaller type.
Schedule schedule_agenda(const Graph& graph, bool remaining);
Schedule schedule_sufficient(const Graph& graph);

}  // namespace edgeops::batching
