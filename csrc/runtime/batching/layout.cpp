// SPDX-License-Identifier: Apache-2.0
#include "layout.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "layout_search.h"

namespace edgeops::batching {

namespace {

// What can be said of an operand before any order is known; kInPlace: it may be laid out.
Verdict nature(const std::vector<int32_t>& operand) {
  const auto outside = std::count_if(operand.begin(), operand.end(), [](int32_t v) { return v < 0; });
  const bool same = std::all_of(operand.begin(), operand.end(), [&](int32_t v) { return v == operand[0]; });
  if (operand.size() < 2 || (same && operand[0] == kExternal)) {
    return outside > 0 ? Verdict::kExternal : Verdict::kInPlace;
  }
  if (same) {
    return Verdict::kBroadcast;
  }
  if (std::find(operand.begin(), operand.end(), kExternal) != operand.end()) {
    return Verdict::kCopyExternal;
  }
  std::vector<int32_t> sorted = operand;
  std::sort(sorted.begin(), sorted.end());
  const bool repeats = std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
  return repeats ? Verdict::kCopyRepeated : outside > 0 ? Verdict::kCopyExternal : Verdict::kInPlace;
}

// Members of a batch in the order in which an operand's variables stand in memory; empty where those are not
// consecutive.
std::vector<int32_t> members_in_memory(const std::vector<int32_t>& operand, const std::vector<int32_t>& position) {
  std::vector<int32_t> members(operand.size());
  std::iota(members.begin(), members.end(), 0);
  std::sort(members.begin(), members.end(), [&](int32_t a, int32_t b) {
    return position[operand[a]] < position[operand[b]];
  });
  for (size_t i = 1; i < members.size(); ++i) {
    if (position[operand[members[i]]] != position[operand[members[i - 1]]] + 1) {
      return {};
    }
  }
  return members;
}

// The order of members that most operands agree on; the earliest operand decides between equals.
void judge_batch(const Batch& batch, const std::vector<int32_t>& position, Layout& layout) {
  const size_t size = batch.empty() ? 0 : batch[0].size();
  std::vector<Verdict> verdicts;
  std::vector<std::vector<int32_t>> ways(batch.size());
  std::map<std::vector<int32_t>, int> votes;
  for (size_t o = 0; o < batch.size(); ++o) {
    verdicts.push_back(nature(batch[o]));
    if (verdicts[o] == Verdict::kInPlace && size > 1) {
      ways[o] = members_in_memory(batch[o], position);
      votes[ways[o]] += ways[o].empty() ? 0 : 1;
    }
  }
  std::vector<int32_t> members(size);
  std::iota(members.begin(), members.end(), 0);
  int most = 0;
  for (const std::vector<int32_t>& way : ways) {
    if (!way.empty() && votes[way] > most) {
      most = votes[way];
      members = way;
    }
  }
  for (size_t o = 0; o < batch.size(); ++o) {
    if (verdicts[o] == Verdict::kInPlace && size > 1 && ways[o] != members) {
      verdicts[o] = ways[o].empty() ? Verdict::kCopyAdjacency : Verdict::kCopyAlignment;
    }
    if (verdicts[o] >= Verdict::kCopyExternal) {
      ++layout.copies;
      layout.copied += static_cast<int64_t>(size);
    }
  }
  layout.members.push_back(std::move(members));
  layout.verdicts.push_back(std::move(verdicts));
}

// Operands to lay out; equal ones of a batch are one.
std::vector<Choice> choices_of(const std::vector<Batch>& batches) {
  std::vector<Choice> choices;
  for (size_t b = 0; b < batches.size(); ++b) {
    const size_t first = choices.size();
    for (const std::vector<int32_t>& operand : batches[b]) {
      if (operand.size() < 2 || nature(operand) != Verdict::kInPlace) {
        continue;
      }
      const auto same = std::find_if(
          choices.begin() + static_cast<int64_t>(first), choices.end(),
          [&](const Choice& c) { return c.operand.variables == operand; });
      const Cost cost = cost_of(operand.size());
      if (same != choices.end()) {
        same->cost += cost;
      } else {
        choices.push_back({{static_cast<int32_t>(b), operand}, cost});
      }
    }
  }
  return choices;
}

}  // namespace

Layout judge(const std::vector<Batch>& batches, std::vector<int32_t> order) {
  Layout layout;
  std::vector<int32_t> position(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    position[order[i]] = static_cast<int32_t>(i);
  }
  for (const Batch& batch : batches) {
    judge_batch(batch, position, layout);
  }
  layout.order = std::move(order);
  return layout;
}

Layout plan_layout(int32_t variables, const std::vector<Batch>& batches, int64_t effort) {
  const Found found = search(variables, static_cast<int32_t>(batches.size()), choices_of(batches), effort);
  Layout layout = judge(batches, found.order);
  layout.minimal = found.minimal;
  return layout;
}

}  // namespace edgeops::batching
