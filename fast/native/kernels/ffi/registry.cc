// Called by fast/native/library.py when it has loaded an instruction set.
#include "registry.h"

namespace planish {

// Adds the kernels of one instruction set; returns 0 if there is no room. The first is the default
// until another is preferred.
extern "C" int planish_add_kernels(const Kernels* kernels) {
  for (int i = 0; i < kMostSets; ++i) {
    const Kernels* empty = nullptr;
    if (instruction_sets()[i].compare_exchange_strong(empty, kernels)) return 1;
  }
  return 0;
}

// Makes the kernels of this name the default, if they were added.
extern "C" void planish_prefer_kernels(const char* name) {
  const Kernels* first = instruction_sets()[0].load();
  for (int i = 1; i < kMostSets; ++i) {
    const Kernels* kernels = instruction_sets()[i].load();
    if (!kernels || std::string_view(name) != kernels->name) continue;
    instruction_sets()[i].store(first);
    instruction_sets()[0].store(kernels);
  }
}

}  // namespace planish
