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

using Tiles = uint8_t[3][16][128];

void draw_bytes(Random& r, Tiles& tiles) {
  for (auto& tile : tiles) {
    for (auto& row : tile) {
      for (auto& byte : row) byte = static_cast<uint8_t>(r());
    }
  }
}

// A float of either sign, between 2^-least and 2^10; one of sixteen is 0 or denormal.
uint32_t draw_float(Random& r, int least) {
  const uint32_t exponent = draw(r, 0, 15) ? static_cast<uint32_t>(draw(r, 127 - least, 137)) : 0;
  return (r() & 0x807fffff) | exponent << 23;
}

// Floats to add to, and bfloat16s.
void draw_floats(Random& r, Tiles& tiles) {
  const int least = draw(r, 0, 1) ? 5 : 75;  // products of some are denormal
  for (int row = 0; row < 16; ++row) {
    for (int i = 0; i < 32; ++i) {
      const uint32_t bits = draw_float(r, least);
      std::memcpy(tiles[0][row] + 4 * i, &bits, 4);
    }
    for (int i = 0; i < 128; ++i) {
      const uint16_t upper = static_cast<uint16_t>(draw_float(r, least) >> 16);
      std::memcpy(tiles[1 + i / 64][row] + i % 64 * 2, &upper, 2);
    }
  }
}

// One product of random tiles, added to a random or a zero tile.
uint64_t hash_product(Random& r, bool floats) {
  const int rows = draw(r, 1, 16), depth = draw(r, 1, 16), columns = draw(r, 1, 16);
  TileConfig config;
  config.set(0, rows, 4 * columns);
  config.set(4, rows, 4 * depth);
  config.set(6, depth, 4 * columns);
  static Tiles from;
  static uint8_t to[16][128];
  if (floats) draw_floats(r, from);
  else draw_bytes(r, from);
  std::memset(to, 0, sizeof(to));
  configure_tiles(config);
  if (draw(r, 0, 1)) load_tile<0>(from[0], 128);
  else zero_tile<0>();
  load_tile<4>(from[1], draw(r, 0, 1) * 128);  // or one row again and again
  load_tile<6>(from[2], 128);
  for (int i = draw(r, 1, 3); i > 0; --i) {
    if (floats) dot_float_tiles<0, 4, 6>();
    else dot_tiles<0, 4, 6>();
  }
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
    const uint64_t hash = hash_product(random, i % 2 == 1);
    std::printf("%016llx\n", static_cast<unsigned long long>(hash));
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
