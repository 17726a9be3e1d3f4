// SPDX-License-Identifier: Apache-2.0
// Memory for the length of a scope, not initialised.
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

}  // namespace edgeops
