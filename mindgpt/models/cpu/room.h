// Memory that a thread keeps for what it works on.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

// Room for numbers, which grows with what is asked for. What was there is then lost.
class Room {
 public:
  // alignment: in bytes, a power of two.
  explicit Room(size_t alignment = 64) : alignment_(alignment) {}

  float *of(int64_t count) {
    if (count > count_) {
      const size_t parts = (count * sizeof(float) + alignment_ - 1) / alignment_;
      room_.reset();
      room_.reset(static_cast<float *>(std::aligned_alloc(alignment_, parts * alignment_)));
      if (!room_) throw std::bad_alloc();
      count_ = count;
    }
    return room_.get();
  }

 private:
  struct Free {
    void operator()(float *room) const { std::free(room); }
  };
  const size_t alignment_;
  std::unique_ptr<float, Free> room_;
  int64_t count_ = 0;
};
