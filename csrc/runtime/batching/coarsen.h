// SPDX-License-Identifier: Apache-2.0
// Coarsening: calls that always follow one another are scheduled as one node (ACRoBat's grain size).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "graph.h"

namespace edgeops::batching {

// A type T follows a type S if every S node has one consumer, a T node, and every T node reads one S node and besides
// it at most what that reads. S's type and T's then make one type; chains of them merge into one. No shortest schedule
// gets longer: an S batch can wait for the T batch that reads it, or a T batch run right after its S batch.
struct Coarse {
  std::shared_ptr<Graph> graph;     // one node a chain, numbered as the chains' first nodes are
  std::vector<int32_t> head;        // [coarse nodes], first node of the chain
  std::vector<int32_t> next;        // [nodes], the next of its chain; -1 for the last
  std::vector<int32_t> head_type;   // [coarse types], type of the first node
  std::vector<int32_t> type_after;  // [types], that of the next node of a chain; -1 for the last
};

Coarse coarsen(const Graph& graph);

// The schedule of the graph that was coarsened: a batch of chains is one batch for every link of them.
Schedule expand(const Coarse& coarse, const Schedule& schedule);

}  // namespace edgeops::batching
