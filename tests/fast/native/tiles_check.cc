// The functions of kernels/matmul/tiles.h on random shapes and contents: prints a hash of what each
// round stores, so that two forms of them, compiled from this file, can be compared.
//
//     tiles_check rounds           exits with 1 if the system does not let it use tiles
//     tiles_check rounds fork      the same in a child that is forked after the permission
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "matmul/tiles.h"

namespace planish::PLANISH_ISA {
namespace {

using Random = std::mt19937;

int draw(Random& r, int low, int high) { return std::uniform_int_distribution<int>(low, high)(r); }

// One product of random tiles, added to a random or a zero tile.
uint64_t hash_product(Random& r) {
  const int rows = draw(r, 1, 16), depth = draw(r, 1, 16), columns = draw(r, 1, 16);
  TileConfig config;
  config.set(0, rows, 4 * columns);
  config.set(4, rows, 4 * depth);
  config.set(6, depth, 4 * columns);
  static uint8_t from[3][16][128], to[16][128];
  for (auto& tile : from) {
    for (auto& row : tile) {
      for (auto& byte : row) byte = static_cast<uint8_t>(r());
    }
  }
  std::memset(to, 0, sizeof(to));
  configure_tiles(config);
  if (draw(r, 0, 1)) load_tile<0>(from[0], 128);
  else zero_tile<0>();
  load_tile<4>(from[1], draw(r, 0, 1) * 128);  // or one row again and again
  load_tile<6>(from[2], 128);
  for (int i = draw(r, 1, 3); i > 0; --i) dot_tiles<0, 4, 6>();
  store_tile<0>(to, 128);
  release_tiles();
  uint64_t hash = 14695981039346656037u;
  for (const auto& row : to) {
    for (const uint8_t byte : row) hash = (hash ^ byte) * 1099511628211u;
  }
  return hash;
}

int print_hashes(int rounds) {
  Random random(1);
  for (int i = 0; i < rounds; ++i) {
    std::printf("%016llx\n", static_cast<unsigned long long>(hash_product(random)));
  }
  return std::fflush(stdout);
}

}  // namespace
}  // namespace planish::PLANISH_ISA

int main(int argc, char** argv) {
  using namespace planish::PLANISH_ISA;
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 100;
  if (!may_use_tiles()) return 1;
  if (argc < 3) return print_hashes(rounds);
  const pid_t child = fork();
  if (child == 0) _exit(print_hashes(rounds));
  int status = 1;
  waitpid(child, &status, 0);
  return status;
}
