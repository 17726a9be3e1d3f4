// SPDX-License-Identifier: Apache-2.0
// Memory that is not initialised: for the length of a scope, or of a thread.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace edgeops {

struct RoomDeleter {
  void operator()(void* p) const {
    std::free(p);
  }
};
using Room = std::unique_ptr<void, RoomDeleter>;

inline Room room_of(int64_t bytes) {
  Room room(std::malloc(static_cast<size_t>(bytes > 0 ? bytes : 1)));
  if (!room) {
    throw std::bad_alloc();
  }
  return room;
}

// Scratch memory of one thread, at a cache line and kept between calls: an op runs thousands of times a second. A
// kernel that needs two blocks at once uses two slots.
inline char* scratch_of_thread(int slot, int64_t bytes) {
  constexpr int64_t kKept = int64_t{64} << 20;  // more than this goes back when a call needs much less
  thread_local Room memory[2];
  thread_local int64_t held[2] = {0, 0};
  if (bytes > held[slot] || (held[slot] > kKept && bytes < held[slot] / 4)) {
    const auto whole = static_cast<size_t>((bytes + 63) / 64 * 64);
    held[slot] = 0;
    memory[slot].reset();
    memory[slot].reset(std::aligned_alloc(64, whole));
    if (!memory[slot]) {
      throw std::bad_alloc();
    }
    held[slot] = bytes;
  }
  return static_cast<char*>(memory[slot].get());
}

}  // namespace edgeops
