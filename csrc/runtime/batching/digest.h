// SPDX-License-Identifier: Apache-2.0
// A digest of memory: tells whether a weight is still the one that was packed.
#pragma once

#include <cstdint>
#include <cstring>

namespace edgeops::batching {

// Sums and sums of running sums in 8 lanes, mixed to 64 bits; reads memory once at about its speed. Any change of one
// word changes it, other changes do with a chance of 1 - 2^-64 or so.
inline uint64_t digest(const void* data, int64_t bytes) {
  typedef uint32_t Lanes __attribute__((vector_size(32)));
  Lanes sum = {}, running = {};
  const char* p = static_cast<const char*>(data);
  int64_t at = 0;
  for (; at + 32 <= bytes; at += 32) {
    Lanes x;
    std::memcpy(&x, p + at, 32);
    sum += x;
    running += sum;
  }
  Lanes rest = {};
  if (at < bytes) {
    std::memcpy(&rest, p + at, static_cast<size_t>(bytes - at));
  }
  sum += rest;
  running += sum;
  uint64_t mixed = static_cast<uint64_t>(bytes);
  for (int i = 0; i < 8; ++i) {
    mixed = (mixed ^ sum[i] ^ (static_cast<uint64_t>(running[i]) << 32)) * 0x9E3779B97F4A7C15ULL;
    mixed ^= mixed >> 29;
  }
  return mixed;
}

}  // namespace edgeops::batching
