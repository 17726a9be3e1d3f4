// SPDX-License-Identifier: Apache-2.0
// Schedulers: which type runs next. All run the whole ready set of a type; lone nodes run singly and first.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "graph.h"

namespace edgeops::batching {

// [types]: the longest chain counted in nodes of the type, for lone types the number of nodes. No schedule has fewer
// batches of the type.
std::vector<int64_t> typed_depths(const Graph& graph);

// Phases one after another, each by `plan`. Phases come from outside: no shortest schedule need keep to them.
Schedule by_phase(const Graph& graph, const std::function<Schedule(const Graph&)>& plan);

Schedule schedule_depth(const Graph& graph);
// By phase, recorded depth and type: no walk over the arguments. As `schedule_depth` where no depths were recorded.
Schedule schedule_inline(const Graph& graph);
// Smallest average depth first: of all nodes of the type, or of those that have not run. Ties: the smaller type.
Schedule schedule_agenda(const Graph& graph, bool remaining);
// Largest share of the typed frontier ready. Ties: more ready nodes, then the smaller type.
Schedule schedule_sufficient(const Graph& graph);
// The same, but where no share is 1, types whose batch lowers the lower bound of what is left go first.
Schedule schedule_lookahead(const Graph& graph);
// Keeps the `width` best partial schedules, all of equally many batches, by the lower bound of what is left plus a
// quarter of what the shares of their batches lacked to 1, then by nodes left. A partial schedule goes on with its safe
// type where it has one, and with every active type otherwise.
Schedule schedule_beam(const Graph& graph, int32_t width);

}  // namespace edgeops::batching
