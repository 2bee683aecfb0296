// The team of threads: every unit runs once, and helpers yield where they do not pay.
#pragma once

#include "check_support.h"
#include "work/team.h"

namespace planish {

// Every unit runs once and has ended when run() returns; nested runs too.
inline void check_team(Pool& pool, Random& r) {
  const int64_t units = draw(r, 0, 200);
  std::vector<std::atomic<int>> done(units);
  team().run(pool, units, [&](int64_t unit) {
    team().run(pool, 3, [&](int64_t inner) { done[unit] += inner + 1; });
  });
  for (int64_t i = 0; i < units; ++i) expect(done[i] == 6, "team", i, units, done[i].load());
}

// A caller's view of some sections, one after the other.
struct Sections {
  Contention contention;
  Clock::time_point now{std::chrono::seconds(1000)};

  void add(int count, int worked_us, int waited_us, bool helped) {
    for (int i = 0; i < count; ++i) {
      const std::chrono::microseconds worked(worked_us), waited(waited_us);
      now += worked + waited;
      contention.note({now, worked, waited, helped});
    }
  }
  bool crowded_in(int milliseconds) const {
    return contention.crowded(now + std::chrono::milliseconds(milliseconds));
  }
};

inline void check_contention() {
  Sections calm;
  calm.add(10000, 50, 40, true);  // units end at different times
  calm.add(10, 50, 0, false);     // a helper wakes up
  calm.add(4, 50, 4000, true);    // a core is lost again and again
  expect(!calm.crowded_in(16) && calm.crowded_in(15), "four lost cores in a row", 0, 0, 0);
  Sections hiccups;
  for (int i = 0; i < 100; ++i) {
    hiccups.add(200, 50, 5, true);
    hiccups.add(1, 50, 4000, true);
    hiccups.add(1, 20000, 15000, true);  // a long unit
    expect(!hiccups.crowded_in(0), "hiccup", i, 0, 0);
  }
  Sections absent;
  absent.add(159, 50, 0, false);
  expect(!absent.crowded_in(0), "absent for 7.95 ms", 0, 0, 0);
  for (int period = 16; period <= 256; period *= 2) {
    absent.add(1, 50, 0, false);
    expect(absent.crowded_in(period - 1), "crowded", period, 0, 0);
    expect(!absent.crowded_in(period), "crowded for too long", period, 0, 0);
    absent.now += std::chrono::milliseconds(period);
    absent.add(159, 50, 0, false);
  }
  absent.now += std::chrono::seconds(1);
  absent.add(1, 50, 0, false);
  expect(absent.crowded_in(15) && !absent.crowded_in(16), "crowded after a long time", 0, 0, 0);
}

}  // namespace planish
