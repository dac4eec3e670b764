// Read loops that measure what memory gives: the yardstick of the benchmarks.
#include <atomic>

#include "isa.h"
#include "pool.h"

namespace {

constexpr int64_t kBlock = 1 << 20;

struct Reading {
  const uint64_t* data;
  int64_t words;
  int32_t loop;
  std::atomic<int64_t> sum{0};
};

// `Ahead`: bytes that are asked for before they are needed; 0 leaves that to the hardware.
template <int Chains, int Ahead>
int64_t read(const uint64_t* p, int64_t words) {
  uint64_t sums[Chains][8] = {};
  int64_t i = 0;
  for (; i + 8 * Chains <= words; i += 8 * Chains) {
    if (Ahead > 0)
      for (int c = 0; c < Chains; ++c) __builtin_prefetch(p + i + 8 * c + Ahead / 8);
    for (int c = 0; c < Chains; ++c)
      for (int l = 0; l < 8; ++l) sums[c][l] ^= p[i + 8 * c + l];
  }
  uint64_t all = 0;
  for (; i < words; ++i) all ^= p[i];
  for (auto& chain : sums)
    for (uint64_t lane : chain) all ^= lane;
  return static_cast<int64_t>(all);
}

void read_block(void* context, int64_t index) {
  auto& reading = *static_cast<Reading*>(context);
  const int64_t each = kBlock / 8, first = index * each;
  const int64_t words = first + each < reading.words ? each : reading.words - first;
  static constexpr int64_t (*loops[])(const uint64_t*, int64_t) = {read<1, 0>,    read<4, 0>,    read<4, 2048>,
                                                                   read<4, 4096>, read<4, 8192>, read<4, 16384>};
  reading.sum += loops[reading.loop % 6](reading.data + first, words);
}

}  // namespace

int64_t moespac_read(const void* data, int64_t bytes, int32_t loop) {
  Reading reading{static_cast<const uint64_t*>(data), bytes / 8, loop, {}};
  moespac::lock();
  moespac::run((reading.words + kBlock / 8 - 1) / (kBlock / 8), read_block, &reading);
  moespac::unlock();
  return reading.sum;
}
