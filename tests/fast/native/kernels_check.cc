// The kernels of one instruction set against a naive program, without JAX: for sanitizers, and for
// processors that are only emulated. Linked with kernels/instruction_set.cc, compiled for that set.
//
//     kernels_check [rounds]     prints "NAME: N checks passed", or what failed and exits with 1
#include <cstdlib>
#include <thread>

#include "check_attention.h"
#include "check_pages.h"
#include "check_rings.h"
#include "check_experts.h"
#include "check_linears.h"
#include "check_rows.h"
#include "check_team.h"
#include "check_work.h"

extern "C" const planish::Kernels* planish_kernels();

namespace planish {
namespace {

void check_argmax(const Kernels& kernels, Random& r) {
  std::vector<float> x = floats(r, draw(r, 1, 100));
  const int64_t count = static_cast<int64_t>(x.size()), at = draw(r, 0, int(count) - 1);
  const auto found = [&] { return kernels.argmax(x.data(), count); };
  x[at] = 9.0f;
  expect(found() == at, "argmax", at, count, 0);
  const int64_t other = draw(r, 0, static_cast<int>(count) - 1);
  x[other] = 9.0f;
  expect(found() == std::min(at, other), "argmax of equals", at, other, count);
  x[other] = -std::numeric_limits<float>::infinity();
  x[at] = std::numeric_limits<float>::infinity();
  expect(found() == -1, "argmax of infinity", at, other, count);
  x[at] = -9.0f;
  x[other] = -NAN;  // negative NaN too
  expect(found() == -1, "argmax of NaN", at, other, count);
}

// A NaN among the inputs must give a NaN, because the engine looks for it in the logits.
void check_nan(const Kernels& kernels, Random& r) {
  const int64_t k = draw(r, 1, 100);
  std::vector<float> x = floats(r, k), up = floats(r, ceil_div(k, 16) * 16), scratch(k + 16);
  x[draw(r, 0, int(k) - 1)] = draw(r, 0, 1) ? NAN : -NAN;
  const Norm norm = draw(r, 0, 1) ? Norm::kRms : Norm::kNone;
  const Source source = {x.data(), norm, nullptr, nullptr, 1e-5f, k};
  expect(std::isnan(kernels.row_absmax(source, 0, scratch.data())), "absmax of NaN", k, 0, 0);
  const auto back = read_back(kernels, source, 1, k, Granularity::kRow);
  expect(std::isnan(back[draw(r, 0, int(k) - 1)]), "scale of NaN", k, 0, 0);
  std::vector<float> y(k);
  kernels.gate(x.data(), up.data(), k, {y.data(), nullptr, k, 0}, 1, k);
  for (int64_t i = 0; i < k; ++i) {
    expect(std::isnan(y[i]) == std::isnan(x[i]), "gate of NaN", i, k, 0);
  }
}

void check_all(const Kernels& kernels, Pool& pool, int rounds, unsigned seed) {
  Random random(seed);
  if (seed == 1) check_extremes(kernels, pool, random);
  if (seed == 1) check_contention();
  for (int round = 0; round < rounds; ++round) {
    check_linear(kernels, pool, random);
    check_linear(kernels, pool, random);
    check_foreign_linear(kernels, pool, random);
    if (round % 4 == 0) check_large_linear(kernels, pool, random);
    if (round % 4 == 1) check_row_counts(kernels, random);
    check_shared_linears(kernels, pool, random);
    check_experts(kernels, pool, random);
    check_route(kernels, pool, random);
    check_gate(kernels, random);
    check_norm(kernels, random);
    check_attention(kernels, pool, random);
    if (round % 4 == 2) check_pages(kernels, pool, random);
    if (round % 4 == 3) check_ring(kernels, pool, random);
    check_router(kernels, random);
    check_weighted_sum(kernels, random);
    check_argmax(kernels, random);
    check_nan(kernels, random);
    for (int i = 0; i < 10; ++i) check_team(pool, random);
  }
}

}  // namespace
}  // namespace planish

int main(int argc, char** argv) {
  using namespace planish;
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 100;
  const Kernels& kernels = *planish_kernels();
  Pool pool(3);
  std::vector<std::thread> callers;  // they share one team; a caller that finds it busy works alone
  for (unsigned seed = 1; seed <= 3; ++seed) {
    callers.emplace_back([&, seed] { check_all(kernels, pool, (rounds + 2) / 3, seed); });
  }
  for (std::thread& caller : callers) caller.join();
  const long done = checks, failed = failures;
  if (failed) std::printf("%s: %ld of %ld checks failed\n", kernels.name, failed, done);
  else std::printf("%s: %ld checks passed\n", kernels.name, done);
  return failed ? 1 : 0;
}
