// Scratch memory of a thread. It grows and is kept, so later calls cause no page faults.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace planish {

// One buffer for each purpose that a thread may need at the same time.
enum class Scratch {
  kPacked,    // rows packed for a linear, read by all threads
  kPackedUp,  // the same for up, if its experts read them in other orders than those of gate
  kRow,       // one row while it is normalized and packed
  kMultiply,  // a product of tiles
  kGated,     // gate and up of some tiles
  kExperts,   // the outputs of all rows' experts
  kRouted,    // normalized rows of a router
  kScores,    // router logits
  kSegments,  // attention over each segment of slots
  kAttend,    // attention over some slots
  kCount,
};

// At least `bytes` of memory, aligned to 64.
inline void* scratch_bytes(Scratch which, size_t bytes) {
  struct Buffer {
    void* data = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffers[static_cast<int>(Scratch::kCount)];
  Buffer& buffer = buffers[static_cast<int>(which)];
  const size_t size = (bytes + 127) / 64 * 64;
  if (buffer.size < size) {
    std::free(buffer.data);
    buffer.size = 0;
    buffer.data = std::aligned_alloc(64, size);
    if (!buffer.data) throw std::bad_alloc();
    buffer.size = size;
  }
  return buffer.data;
}

template <class T>
T* scratch(Scratch which, int64_t count) {
  return static_cast<T*>(scratch_bytes(which, static_cast<size_t>(count) * sizeof(T)));
}

}  // namespace planish
