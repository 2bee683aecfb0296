// The loaded instruction sets; each library adds its own.
#pragma once

#include <atomic>
#include <string_view>

#include "../table.h"

namespace planish {

constexpr int kMostSets = 8;

// The default first.
inline std::atomic<const Kernels*>* instruction_sets() {
  static std::atomic<const Kernels*> sets[kMostSets];
  return sets;
}

// The set of this name, the default for ""; null if it is not loaded.
inline const Kernels* choose(std::string_view name) {
  for (int i = 0; i < kMostSets; ++i) {
    const Kernels* kernels = instruction_sets()[i].load();
    if (kernels && (name.empty() || name == kernels->name)) return kernels;
  }
  return nullptr;
}

}  // namespace planish
