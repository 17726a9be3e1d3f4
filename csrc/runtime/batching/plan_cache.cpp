// SPDX-License-Identifier: Apache-2.0
#include "plan_cache.h"

namespace edgeops::batching {
namespace {

uint64_t mixed(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9fb21c651e98df25u;
  return hash ^ (hash >> 29);
}

// Four independent chains: one multiplication waits for the one before it.
uint64_t hashed(uint64_t hash, const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  uint64_t lane[4] = {hash, ~hash, hash + 1, hash ^ bytes};
  for (; bytes >= 32; bytes -= 32, at += 32) {
    uint64_t words[4];
    std::memcpy(words, at, 32);
    for (int i = 0; i < 4; ++i) {
      lane[i] = mixed(lane[i], words[i]);
    }
  }
  for (; bytes > 0; --bytes, ++at) {
    lane[0] = mixed(lane[0], static_cast<unsigned char>(*at));
  }
  for (int i = 1; i < 4; ++i) {
    lane[0] = mixed(lane[0], lane[i]);
  }
  return lane[0];
}

template <class T>
uint64_t hashed(uint64_t hash, const std::vector<T>& values) {
  return hashed(mixed(hash, values.size()), values.data(), values.size() * sizeof(T));
}

}  // namespace

uint64_t structural_hash(const Graph& graph, const std::string& tag) {
  uint64_t hash = hashed(static_cast<uint64_t>(graph.types), tag.data(), tag.size());
  hash = hashed(hash, graph.type);
  hash = hashed(hash, graph.arg_start);
  hash = hashed(hash, graph.args);
  hash = hashed(hash, graph.lone);
  hash = hashed(hash, graph.depth);
  return hashed(hash, graph.phase);
}

}  // namespace edgeops::batching
