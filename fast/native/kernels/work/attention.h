// How the threads share attention: units of 8 queries of a key-value head, over the slots that any
// of them may read.
//
// The softmax runs over segments of 256 slots, at multiples of 256, which are folded in order. So a
// token's result has the same bits in a prompt, in a step of many rows and alone, and with few
// units the segments are units too.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../table.h"
#include "scratch.h"
#include "team.h"

namespace planish {

constexpr int64_t kSegment = 256;  // slots of a segment
constexpr int64_t kPlenty = 4;     // groups for each thread that need no smaller units
constexpr int64_t kPartSteps = 4;  // of INT8 attention, in a part of a group

// Successive tokens of one row.
struct Run {
  int64_t row, token, count;
  int64_t first_group;
};

inline std::vector<Run> find_runs(const Attention& a) {
  std::vector<Run> runs;
  for (int64_t token = 0; token < a.batch * a.tokens; ++token) {
    const int64_t row = a.rows ? a.rows[token] : token / a.tokens;
    if (row < 0) continue;
    const bool next =
        !runs.empty() && runs.back().row == row && runs.back().token + runs.back().count == token;
    if (next) ++runs.back().count;
    else runs.push_back({row, token, 1, 0});
  }
  return runs;
}

// The units of one call: `groups` of up to 8 queries, each with its segments of slots.
class AttentionUnits {
 public:
  explicit AttentionUnits(const Attention& a) : a_(a), runs_(find_runs(a)) {
    for (Run& run : runs_) {
      run.first_group = groups;
      groups += a.kv_heads * tiles(run);
    }
    floats = kQueryRows * (a.head_dim + 2);
  }

  // Queries over all slots that they read; the results are stored at `memory`.
  QueryTile group(int64_t index, float* memory) const {
    const auto after = [](int64_t i, const Run& run) { return i < run.first_group; };
    const Run& run = *(std::upper_bound(runs_.begin(), runs_.end(), index, after) - 1);
    const int64_t in_run = index - run.first_group, count = tiles(run);
    QueryTile t = {};
    t.row = run.row;
    t.token = run.token;
    t.head = in_run / count;
    t.first = in_run % count * kQueryRows;
    t.count = std::min(run.count * shared() - t.first, kQueryRows);
    reach(t);
    place(t, memory);
    return t;
  }

  // The same over one of the group's segments.
  QueryTile segment(QueryTile t, int64_t index, float* memory) const {
    const int64_t first = (t.begin / kSegment + index) * kSegment;
    t.begin = std::max(t.begin, first);
    t.end = std::min(t.end, first + kSegment);
    place(t, memory);
    return t;
  }

  static int64_t segments(const QueryTile& t) {
    return ceil_div(t.end, kSegment) - t.begin / kSegment;
  }

  // The largest count(group), at least 1.
  template <class Count>
  int64_t most(const Count& count) const {
    int64_t most = 1;
    for (int64_t i = 0; i < groups; ++i) most = std::max(most, count(group(i, nullptr)));
    return most;
  }

  int64_t groups = 0;
  int64_t floats;  // that the results of one unit take

 private:
  int64_t shared() const { return a_.heads / a_.kv_heads; }
  int64_t tiles(const Run& run) const { return ceil_div(run.count * shared(), kQueryRows); }

  void place(QueryTile& t, float* memory) const {
    t.largest = memory;
    t.sum = memory + kQueryRows;
    t.context = memory + 2 * kQueryRows;
  }

  // The slots that any query of a tile may read.
  void reach(QueryTile& t) const {
    int64_t begin = capacity(a_);
    for (int64_t r = t.first; r < t.first + t.count; ++r) {
      const int64_t seen = a_.positions[t.token + r / shared()] + 1;
      t.end = std::max(t.end, seen);
      begin = std::min(begin, seen - a_.window);
    }
    t.begin = begin < 0 ? 0 : begin / kSlots * kSlots;
  }

  const Attention& a_;
  std::vector<Run> runs_;
};

// Writes new keys and values to the cache; 16 tokens fill one tile of keys.
template <class Pool>
void write_cache(const Kernels& kernels, Pool& pool, const Attention& a) {
  const int64_t count = a.batch * a.tokens;
  run_units(pool, ceil_div(count, kTile), count * a.kv_heads * a.head_dim, [&](int64_t unit) {
    const int64_t first = unit * kTile, last = std::min(first + kTile, count);
    kernels.write_slots(a, first, last, scratch<float>(Scratch::kRow, a.head_dim + 16));
  });
}

// Where the results of a group's INT8 attention are, what its passes share, and sums of its parts.
struct CodesMemory {
  int64_t results, shared, sums;  // floats

  CodesMemory(const Kernels& kernels, const Attention& a, const AttentionUnits& units,
              int64_t steps, int64_t parts)
      : results(units.floats),
        shared(kernels.codes_memory(steps)),
        sums(parts * kQueryRows * a.head_dim) {}

  int64_t floats() const { return results + shared + sums; }
  float* shared_at(float* group) const { return group + results; }
  int32_t* sums_at(float* group) const {
    return reinterpret_cast<int32_t*>(group + results + shared);
  }
};

// A group is one unit, the longest first.
template <class Pool>
void attend_codes_groups(const Kernels& kernels, Pool& pool, const Attention& a,
                         const AttentionUnits& units, int64_t steps) {
  const CodesMemory m(kernels, a, units, steps, 1);
  const int64_t wanted = m.floats() + kernels.attention_scratch(a);
  team().run(pool, units.groups, [&](int64_t index) {
    float* memory = scratch<float>(Scratch::kAttend, wanted);
    const QueryTile t = units.group(units.groups - 1 - index, memory);
    const Steps all = {0, count_steps(t)};
    kernels.score_codes(a, t, all, m.shared_at(memory), memory + m.floats());
    kernels.weigh_codes(a, t, all, m.shared_at(memory));
    kernels.sum_codes(a, t, all, m.shared_at(memory), m.sums_at(memory));
    kernels.finish_codes(a, t, m.shared_at(memory), m.sums_at(memory), 1);
    kernels.divide(a, t);
  });
}

// A part of a group is one unit of each pass.
template <class Pool>
void attend_codes_parts(const Kernels& kernels, Pool& pool, const Attention& a,
                        const AttentionUnits& units, int64_t steps) {
  const int64_t parts = ceil_div(steps, kPartSteps);
  const CodesMemory m(kernels, a, units, steps, parts);
  float* memory = scratch<float>(Scratch::kSegments, units.groups * m.floats());
  const auto group_at = [&](int64_t index) { return memory + index * m.floats(); };
  const auto for_parts = [&](const auto& pass) {
    team().run(pool, units.groups * parts, [&](int64_t i) {
      float* at = group_at(i / parts);
      const QueryTile t = units.group(i / parts, at);
      const int64_t first = i % parts * kPartSteps,
                    end = std::min(first + kPartSteps, count_steps(t));
      pass(t, Steps{std::min(first, end), end}, m.shared_at(at),
           m.sums_at(at) + i % parts * kQueryRows * a.head_dim);
    });
  };
  for_parts([&](const QueryTile& t, Steps part, float* shared, int32_t*) {
    kernels.score_codes(a, t, part, shared,
                        scratch<float>(Scratch::kAttend, kernels.attention_scratch(a)));
  });
  for_parts([&](const QueryTile& t, Steps part, float* shared, int32_t*) {
    kernels.weigh_codes(a, t, part, shared);
  });
  for_parts([&](const QueryTile& t, Steps part, float* shared, int32_t* sums) {
    kernels.sum_codes(a, t, part, shared, sums);
  });
  for (int64_t index = 0; index < units.groups; ++index) {
    float* at = group_at(index);
    const QueryTile t = units.group(index, at);
    kernels.finish_codes(a, t, m.shared_at(at), m.sums_at(at), parts);
    kernels.divide(a, t);
  }
}

// INT8 attention: parts of a group are units if there are few groups, which the threads cannot
// share evenly.
template <class Pool>
void attend_codes(const Kernels& kernels, Pool& pool, const Attention& a,
                  const AttentionUnits& units) {
  const int64_t threads = pool.num_threads(), steps = units.most(count_steps);
  const bool even = units.groups % threads == 0 || units.groups >= kPlenty * threads;
  if (even || steps <= kPartSteps) attend_codes_groups(kernels, pool, a, units, steps);
  else attend_codes_parts(kernels, pool, a, units, steps);
}

// A group is one unit, the longest first; its segments are folded one by one.
template <class Pool>
void attend_groups(const Kernels& kernels, Pool& pool, const Attention& a,
                   const AttentionUnits& units) {
  const int64_t wanted = 2 * units.floats + kernels.attention_scratch(a);
  team().run(pool, units.groups, [&](int64_t index) {
    float* memory = scratch<float>(Scratch::kAttend, wanted);
    float* left = memory + 2 * units.floats;
    const QueryTile group = units.group(units.groups - 1 - index, memory);
    const QueryTile whole = units.segment(group, 0, memory);
    kernels.attend(a, whole, left);
    for (int64_t s = 1; s < units.segments(group); ++s) {
      const QueryTile part = units.segment(group, s, memory + units.floats);
      kernels.attend(a, part, left);
      kernels.fold(a, whole, part);
    }
    kernels.divide(a, whole);
  });
}

// A segment is one unit; they are folded when all are done.
template <class Pool>
void attend_segments(const Kernels& kernels, Pool& pool, const Attention& a,
                     const AttentionUnits& units, int64_t segments) {
  const int64_t count = units.groups * segments;
  float* memory = scratch<float>(Scratch::kSegments, count * units.floats);
  const auto unit_at = [&](int64_t i) {
    const QueryTile group = units.group(i / segments, nullptr);
    return units.segment(group, i % segments, memory + i * units.floats);
  };
  team().run(pool, count, [&](int64_t i) {
    const QueryTile t = unit_at(i);
    float* wanted = scratch<float>(Scratch::kAttend, kernels.attention_scratch(a));
    if (t.begin < t.end) kernels.attend(a, t, wanted);
  });
  for (int64_t group = 0; group < units.groups; ++group) {
    const QueryTile whole = unit_at(group * segments);
    for (int64_t s = 1; s < segments; ++s) {
      const QueryTile part = unit_at(group * segments + s);
      if (part.begin < part.end) kernels.fold(a, whole, part);
    }
    kernels.divide(a, whole);
  }
}

// The outputs of padding, which belongs to no row, are zeros.
inline void clear_padding(const Attention& a) {
  const int64_t width = a.heads * a.head_dim;
  for (int64_t token = 0; a.rows && token < a.batch * a.tokens; ++token) {
    if (a.rows[token] < 0) std::memset(a.out + token * width, 0, sizeof(float) * width);
  }
}

template <class Pool>
void run_attention(const Kernels& kernels, Pool& pool, const Attention& a) {
  write_cache(kernels, pool, a);
  clear_padding(a);
  const AttentionUnits units(a);
  if (a.codes) {
    attend_codes(kernels, pool, a, units);
    return;
  }
  const bool plenty = units.groups >= kPlenty * pool.num_threads();
  const int64_t segments = plenty ? 1 : units.most(AttentionUnits::segments);
  if (segments == 1) attend_groups(kernels, pool, a, units);
  else attend_segments(kernels, pool, a, units, segments);
}

}  // namespace planish
