// SPDX-License-Identifier: Apache-2.0
// Beam search over the sequence of types.
#pragma once

#include <cstdint>
#include <vector>

#include "graph.h"
#include "schedule_frontier.h"

namespace edgeops::batching {

// For a node of type a: the longest chain of a-nodes from it down to its consumers, itself included. Its maximum over a
// type is Depth(G^a). Lone nodes have height 1.
struct TypedHeights {
  TypedHeights(const Graph& graph, const Links& links);

  std::vector<int32_t> height;  // [V]
  std::vector<int64_t> bound;   // [types]: Depth(G^type), or for lone types the number of nodes
};

// Keeps the `width` best partial schedules, by (batches so far + lower bound of what is left, nodes left). A partial
// schedule goes on with its safe type where it has one, and with every active type otherwise.
Schedule schedule_beam(const Graph& graph, int32_t width);

}  // namespace edgeops::batching
