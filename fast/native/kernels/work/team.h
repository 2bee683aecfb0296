// Work shared among XLA's threads: the caller and helpers from XLA's pool.
//
// A decode step makes a hundred short parallel sections, and waking a sleeping thread costs as
// much as a section. So a helper, once called, spins for a moment and joins every section that
// follows; if none comes within kLinger it returns to XLA. Units are claimed one by one from a
// counter: a helper that comes late or never delays nothing, and no result depends on which thread
// computed it. Where other programs want the cores, helpers yield them: contention.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "contention.h"

namespace planish {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Team {
 public:
  // Calls body(unit) for every unit in 0..units-1, on this thread and up to pool.num_threads() - 1
  // others. Returns when all are done.
  template <class Pool, class Body>
  void run(Pool& pool, int64_t units, Body&& body) {
    const int64_t helpers = pool.num_threads() - 1;
    if (units <= 1 || helpers < 1 || busy_.exchange(true, std::memory_order_acquire)) {
      for (int64_t unit = 0; unit < units; ++unit) body(unit);  // another section holds the team
      return;
    }
    Section section;
    section.units = units;
    section.context = &body;
    section.call = [](void* context, int64_t unit) {
      (*static_cast<std::remove_reference_t<Body>*>(context))(unit);
    };
    const Clock::time_point start = Clock::now();
    yields_.store(contention_.crowded(start), std::memory_order_relaxed);
    call_helpers(pool, helpers, section);
    const bool helped = section.work() < units;
    wait_for_helpers(start, helped);
    busy_.store(false, std::memory_order_release);
  }

 private:
  static constexpr std::chrono::microseconds kLinger{100}, kNap{50};

  struct Section {
    std::atomic<int64_t> next{0};
    int64_t units;
    void* context;
    void (*call)(void*, int64_t);

    // Returns the number of units that this thread did.
    int64_t work() {
      int64_t done = 0;
      for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < units; ++done) {
        call(context, unit);
      }
      return done;
    }
  };

  template <class Pool>
  void call_helpers(Pool& pool, int64_t helpers, Section& section) {
    section_.store(&section);
    epoch_.fetch_add(1);
    for (int64_t n = present_.load(); n < helpers; ++n) {
      present_.fetch_add(1);
      pool.Schedule([this] { help(); });
    }
  }

  // Closes the section that started at `start`, and returns when nobody is inside.
  void wait_for_helpers(Clock::time_point start, bool helped) {
    section_.store(nullptr);
    const Clock::time_point since = Clock::now();
    const Clock::duration worked = since - start, patience = Contention::patience(worked);
    for (int spins = 0; inside_.load() != 0; ++spins) {
      relax();
      if (spins % 64 == 63 && Clock::now() - since > patience) std::this_thread::sleep_for(kNap);
    }
    const Clock::time_point now = Clock::now();
    contention_.note({now, worked, now - since, helped});
  }

  void help() {
    uint64_t seen = 0;
    auto since = Clock::now();
    for (int spins = 0;; ++spins) {
      const uint64_t epoch = epoch_.load(std::memory_order_acquire);
      if (epoch != seen) {
        seen = epoch;
        inside_.fetch_add(1);  // before section_ is read: the owner waits until nobody is inside
        if (Section* section = section_.load()) section->work();
        inside_.fetch_sub(1);
        since = Clock::now();
      } else if (spins % 64 == 63) {
        if (Clock::now() - since > kLinger) break;
        if (yields_.load(std::memory_order_relaxed)) std::this_thread::yield();
      }
      relax();
    }
    present_.fetch_sub(1);
  }

  std::atomic<bool> busy_{false};
  Contention contention_;            // of who holds busy_
  std::atomic<bool> yields_{false};  // helpers that have nothing to do
  alignas(64) std::atomic<uint64_t> epoch_{0};
  alignas(64) std::atomic<Section*> section_{nullptr};
  std::atomic<int64_t> inside_{0};
  std::atomic<int64_t> present_{0};
};

inline Team& team() {
  static Team one;
  return one;
}

constexpr int64_t kSerialFloats = 16384;  // that one thread handles in a few microseconds

// Calls body(unit) for every unit: on all threads, or only on this one if there is so little work
// that calling the others would take longer.
template <class Pool, class Body>
void run_units(Pool& pool, int64_t units, int64_t floats, Body&& body) {
  if (floats > kSerialFloats) {
    team().run(pool, units, body);
  } else {
    for (int64_t unit = 0; unit < units; ++unit) body(unit);
  }
}

}  // namespace planish
