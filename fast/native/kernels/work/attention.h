// How the threads share attention: units of 8 query rows of a key-value head, over the slots that
// any of them may read. When each sequence gets one token, the slots are divided among units too.
#pragma once

#include <algorithm>
#include <vector>

#include "../table.h"
#include "scratch.h"
#include "team.h"

namespace planish {

constexpr int64_t kSegment = 256;  // slots that one unit of decoding reads
constexpr int64_t kBegin = 128;    // units begin at multiples of so many slots

// The units of one call: `groups` of up to 8 query rows, `segments` of slots for each.
class AttentionUnits {
 public:
  explicit AttentionUnits(const Attention& a) : a_(a) {
    tiles_ = ceil_div(rows(), kQueryRows);
    groups = a.batch * a.kv_heads * tiles_;
    const int64_t reach = std::min(a.window + kBegin - 1, a.slots);
    segments = a.tokens == 1 && !a.codes ? ceil_div(reach, kSegment) : 1;
    floats = kQueryRows * (a.head_dim + 2);
  }

  // Rows of a group over a segment of slots; the results are stored at `memory`.
  QueryTile unit(int64_t group, int64_t segment, float* memory) const {
    QueryTile t = {};
    t.batch = group / (a_.kv_heads * tiles_);
    t.head = group / tiles_ % a_.kv_heads;
    t.first = group % tiles_ * kQueryRows;
    t.count = std::min(rows() - t.first, kQueryRows);
    t.largest = memory;
    t.sum = memory + kQueryRows;
    t.context = memory + 2 * kQueryRows;
    reach(t);
    t.begin += segment * kSegment;
    if (segments > 1) t.end = std::min(t.end, t.begin + kSegment);
    return t;
  }

  int64_t groups, segments;
  int64_t floats;  // that the results of one unit take

 private:
  int64_t rows() const { return a_.tokens * (a_.heads / a_.kv_heads); }

  // The slots that any row of a tile may read.
  void reach(QueryTile& t) const {
    const int64_t shared = a_.heads / a_.kv_heads;
    int64_t begin = a_.slots;
    for (int64_t r = t.first; r < t.first + t.count; ++r) {
      const int64_t seen = a_.positions[t.batch * a_.tokens + r / shared] + 1;
      t.end = std::max(t.end, seen);
      begin = std::min(begin, seen - a_.window);
    }
    t.begin = begin < 0 ? 0 : begin / kBegin * kBegin;
  }

  const Attention& a_;
  int64_t tiles_;
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

// Attends over whole contexts: each group is one unit, the longest first.
template <class Pool>
void attend_groups(const Kernels& kernels, Pool& pool, const Attention& a,
                   const AttentionUnits& units) {
  const auto attend = a.codes ? kernels.attend_codes : kernels.attend;
  const auto attend_scratch = a.codes ? kernels.codes_scratch : kernels.attention_scratch;
  const int64_t wanted = units.floats + attend_scratch(a);
  team().run(pool, units.groups, [&](int64_t group) {
    float* memory = scratch<float>(Scratch::kAttend, wanted);
    const QueryTile t = units.unit(units.groups - 1 - group, 0, memory);
    attend(a, t, memory + units.floats);
    kernels.combine(a, &t, 1);
  });
}

// Attends over segments of slots, then combines them in order.
template <class Pool>
void attend_segments(const Kernels& kernels, Pool& pool, const Attention& a,
                     const AttentionUnits& units) {
  const int64_t count = units.groups * units.segments;
  float* memory = scratch<float>(Scratch::kSegments, count * units.floats);
  const auto unit_at = [&](int64_t i) {
    return units.unit(i / units.segments, i % units.segments, memory + i * units.floats);
  };
  team().run(pool, count, [&](int64_t i) {
    const QueryTile t = unit_at(i);
    float* wanted = scratch<float>(Scratch::kAttend, kernels.attention_scratch(a));
    if (t.begin < t.end) kernels.attend(a, t, wanted);
  });
  std::vector<QueryTile> segments;
  for (int64_t group = 0; group < units.groups; ++group) {
    segments.clear();
    for (int64_t s = 0; s < units.segments; ++s) {
      const QueryTile t = unit_at(group * units.segments + s);
      if (t.begin < t.end) segments.push_back(t);
    }
    kernels.combine(a, segments.data(), static_cast<int64_t>(segments.size()));
  }
}

template <class Pool>
void run_attention(const Kernels& kernels, Pool& pool, const Attention& a) {
  write_cache(kernels, pool, a);
  const AttentionUnits units(a);
  if (units.segments == 1) attend_groups(kernels, pool, a, units);
  else attend_segments(kernels, pool, a, units);
}

}  // namespace planish
