// Whether helpers pay, on cores that other programs want as well.
//
// Two processes with a thread for each core lose most of both, in two ways. A helper that shares
// the caller's core finds nothing to do, but takes its turns and spins. And a helper that loses
// its core while it holds a unit keeps the caller waiting for a time slice, some milliseconds
// where a section of decoding takes 50 us. Either is a loss; a section that a helper joins is a
// gain. After too much loss helpers yield while they have nothing to do, so that each process
// soon works on one core. They do not always yield: next to a program that is merely in the
// background, who yields waits for a time slice of it.
#pragma once

#include <algorithm>
#include <chrono>

namespace planish {

using Clock = std::chrono::steady_clock;

// A section, as its caller saw it.
struct Turn {
  Clock::time_point end;
  Clock::duration worked;  // until nothing was left to claim
  Clock::duration waited;  // after that, for helpers that held units
  bool helped;             // a helper claimed a unit
};

// Helpers yield for a period after a loss of kLoss, and for twice as long if they soon lose again.
class Contention {
 public:
  // How long the caller spins for its helpers before it sleeps, so that they find a core.
  static Clock::duration patience(Clock::duration worked) { return kLate + worked / 4; }

  bool crowded(Clock::time_point now) const { return now < until_; }

  void note(const Turn& turn) {
    if (crowded(turn.end)) return;
    lost_ = std::max(lost_ + loss(turn), Clock::duration::zero());
    if (lost_ < kLoss) return;
    times_ = turn.end - until_ < kSoon ? std::min(2 * times_, kMostTimes) : 1;
    until_ = turn.end + times_ * kLoss;
    lost_ = Clock::duration::zero();
  }

 private:
  static constexpr std::chrono::microseconds kLate{100};
  static constexpr std::chrono::milliseconds kLoss{16}, kSoon{100};
  static constexpr int kMostTimes = 16;

  // Helpers that miss more than a third of the sections lose more than they gain. A section counts
  // up to kLate, because a caller that lost its core takes longer. A wait of more than twice what
  // the caller worked is no long unit, but a lost core.
  static Clock::duration loss(const Turn& turn) {
    if (turn.waited > kLate + 2 * turn.worked) return turn.waited;
    const Clock::duration counted = std::min<Clock::duration>(turn.worked, kLate);
    return turn.helped ? -counted : 2 * counted;
  }

  Clock::time_point until_{};
  Clock::duration lost_{};
  int times_ = 1;
};

}  // namespace planish
