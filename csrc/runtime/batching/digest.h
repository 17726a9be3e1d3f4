// SPDX-License-Identifier: Apache-2.0
// A digest of memory: tells whether a weight is still the one that was packed.
#pragma once

#include <cstdint>
#include <cstring>

namespace edgeops::batching {

typedef uint32_t DigestLanes __attribute__((vector_size(64)));

// Sums and sums of running sums in 16 lanes.
struct Digest {
  DigestLanes sum = {}, running = {};

  void take(const char* p, int64_t bytes) {
    DigestLanes x = {};
    std::memcpy(&x, p, static_cast<size_t>(bytes));
    sum += x;
    running += sum;
  }
  uint64_t mixed(uint64_t seed) const {
    for (int i = 0; i < 16; ++i) {
      seed = (seed ^ sum[i] ^ (static_cast<uint64_t>(running[i]) << 32)) * 0x9E3779B97F4A7C15ULL;
      seed ^= seed >> 29;
    }
    return seed;
  }
};

// All of up to `whole` bytes; of more memory one line of 64 bytes in 512, not the same of each, so that neither a row
// nor a column of a matrix changes unnoticed.
inline uint64_t digest(const void* data, int64_t bytes, int64_t whole = int64_t{256} << 10) {
  const char* p = static_cast<const char*>(data);
  Digest d;
  int64_t at = 0;
  if (bytes <= whole) {
    for (; at + 64 <= bytes; at += 64) {
      d.take(p + at, 64);
    }
  } else {
    uint32_t pick = 1;
    for (; at + 512 <= bytes; at += 512) {
      pick = pick * 1664525u + 1013904223u;
      d.take(p + at + 64 * (pick >> 29), 64);
    }
    for (; at + 64 <= bytes; at += 64) {
      d.take(p + at, 64);
    }
  }
  if (at < bytes) {
    d.take(p + at, bytes - at);
  }
  return d.mixed(static_cast<uint64_t>(bytes));
}

}  // namespace edgeops::batching
