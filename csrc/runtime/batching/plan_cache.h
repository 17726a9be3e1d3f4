// SPDX-License-Identifier: Apache-2.0
// Plans of graphs seen before, found by structure.
#pragma once

#include <cstdint>
#include <cstring>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "graph.h"

namespace edgeops::batching {

// A hash of types, edges, lone types and a tag. Only ever a hint: equal hashes are compared in full.
uint64_t structural_hash(const Graph& graph, const std::string& tag);

// Least recently used out first. The tag says how a plan was made; plans of one graph under two tags are two entries.
template <class Plan>
class PlanCache {
 public:
  PlanCache(int64_t capacity, int32_t hash_bits) : capacity_(capacity), hash_bits_(hash_bits) {}

  const Plan* find(const Graph& graph, const std::string& tag) {
    const auto [first, last] = index_.equal_range(key(graph, tag));
    for (auto it = first; it != last; ++it) {
      const Entry& entry = *it->second;
      if (entry.tag == tag && same(*entry.graph, graph)) {
        entries_.splice(entries_.begin(), entries_, it->second);
        ++hits_;
        return &entries_.front().plan;
      }
    }
    ++misses_;
    return nullptr;
  }

  // The graph must not change while it is kept.
  void keep(std::shared_ptr<const Graph> graph, std::string tag, Plan plan) {
    const uint64_t hash = key(*graph, tag);
    entries_.push_front({std::move(graph), std::move(tag), std::move(plan), hash});
    index_.emplace(hash, entries_.begin());
    while (static_cast<int64_t>(entries_.size()) > capacity_) {
      drop_oldest();
    }
  }

  void clear() {
    index_.clear();
    entries_.clear();
  }

  int64_t size() const {
    return static_cast<int64_t>(entries_.size());
  }
  int64_t hits() const {
    return hits_;
  }
  int64_t misses() const {
    return misses_;
  }

 private:
  struct Entry {
    std::shared_ptr<const Graph> graph;
    std::string tag;
    Plan plan;
    uint64_t hash;
  };
  using Entries = std::list<Entry>;

  uint64_t key(const Graph& graph, const std::string& tag) const {
    const uint64_t hash = structural_hash(graph, tag);
    return hash_bits_ >= 64 ? hash : hash & ((uint64_t{1} << hash_bits_) - 1);
  }

  static bool same(const Graph& a, const Graph& b) {
    return a.types == b.types && a.type == b.type && a.args == b.args && a.arg_start == b.arg_start &&
           a.lone == b.lone && a.depth == b.depth && a.phase == b.phase;
  }

  void drop_oldest() {
    const auto oldest = std::prev(entries_.end());
    auto [it, last] = index_.equal_range(oldest->hash);
    for (; it != last; ++it) {
      if (it->second == oldest) {
        index_.erase(it);
        break;
      }
    }
    entries_.erase(oldest);
  }

  int64_t capacity_;
  int32_t hash_bits_;
  Entries entries_;
  std::unordered_multimap<uint64_t, typename Entries::iterator> index_;
  int64_t hits_ = 0, misses_ = 0;
};

}  // namespace edgeops::batching
