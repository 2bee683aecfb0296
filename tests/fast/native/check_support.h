// Shared by the headers of kernels_check.cc: expectations, random numbers, a pool of threads.
#pragma once

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <mutex>
#include <queue>
#include <random>
#include <thread>
#include <vector>

#include "table.h"
#include "work/team.h"

namespace planish {

inline std::atomic<int64_t> checks{0}, failures{0};

inline void expect(bool good, const char* what, int64_t a, int64_t b, int64_t c) {
  ++checks;
  if (!good && failures++ < 20) {
    std::printf("FAILED %s (%ld, %ld, %ld)\n", what, long(a), long(b), long(c));
  }
}

// Stands in for XLA's thread pool.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { loop(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int64_t num_threads() const { return static_cast<int64_t>(threads_.size()) + 1; }
  void Schedule(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push(std::move(task));
    }
    changed_.notify_one();
  }

 private:
  void loop() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return ended_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop();
      }
      task();
    }
  }
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::queue<std::function<void()>> tasks_;
  bool ended_ = false;
};

constexpr double kEps = 1.0 / (1 << 23);
using Random = std::mt19937;

inline int draw(Random& r, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(r);
}

inline std::vector<float> floats(Random& r, int64_t count, float width = 1.0f) {
  std::normal_distribution<float> normal(0.0f, width);
  std::vector<float> x(count);
  for (float& value : x) value = normal(r);
  return x;
}

// docs/spec.md 2: max(absmax, 1e-5) / 127, and rint(x / scale) clipped to -127..127.
inline float scale_of(const float* x, int64_t count) {
  float most = 0.0f;
  for (int64_t i = 0; i < count; ++i) most = std::fmax(most, std::fabs(x[i]));
  return std::fmax(most, 1e-5f) / 127.0f;
}

inline int code_of(float x, float scale) {
  return static_cast<int>(std::fmin(127.0f, std::fmax(-127.0f, std::nearbyint(x / scale))));
}

// Around a zero point, in the order of operations of reference/grids.py.
inline int code_around(float x, float scale, int zero) {
  const float code = std::nearbyint(x / scale) + static_cast<float>(zero);
  return static_cast<int>(std::fmin(127.0f, std::fmax(-128.0f, code)));
}

}  // namespace planish
