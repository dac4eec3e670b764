// Runs expert calls from a file through the kernels' C interface: `kernel_driver IN OUT`, for CPUs that run no Python here.
// IN: calls one after another, as kernel_driver.py writes them; OUT: their rows, float32. Prints moespac_isas().
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "abi.h"

namespace {

template <class T>
std::vector<T> read(FILE* file, int64_t count) {
  std::vector<T> values(count);
  if (count && fread(values.data(), sizeof(T), count, file) != static_cast<size_t>(count)) exit(3);
  return values;
}

// Blocks start on a multiple of 64 bytes.
struct Aligned {
  explicit Aligned(int64_t bytes) : data(static_cast<uint8_t*>(aligned_alloc(64, (bytes + 63) / 64 * 64))) {}
  ~Aligned() { free(data); }
  Aligned(Aligned&& other) noexcept : data(other.data) { other.data = nullptr; }
  uint8_t* data;
};

}  // namespace

int main(int count, char** names) {
  FILE* in = count == 3 ? fopen(names[1], "rb") : nullptr;
  FILE* out = in ? fopen(names[2], "wb") : nullptr;
  if (!out) return 2;
  printf("%u\n", moespac_isas());
  int64_t head[7];  // isa, compute, threads, experts, bytes of the hidden states, bytes of a block, tokens
  while (fread(head, sizeof head, 1, in) == 1) {
    const auto layout = read<MoeLayout>(in, 1);
    const auto hidden = read<uint8_t>(in, head[4]);
    std::vector<Aligned> blocks;
    std::vector<std::vector<int64_t>> rows;
    std::vector<std::vector<float>> weights;
    std::vector<MoeExpert> experts;
    int64_t total = 0;
    for (int64_t i = 0; i < head[3]; ++i) {
      const int64_t m = read<int64_t>(in, 1)[0];
      rows.push_back(read<int64_t>(in, m));
      weights.push_back(read<float>(in, m));
      blocks.emplace_back(head[5]);
      if (fread(blocks.back().data, head[5], 1, in) != 1) return 3;
      experts.push_back({blocks.back().data, rows.back().data(), weights.back().data(), m});
      total += m;
    }
    std::vector<float> made(total * layout[0].hidden);
    if (int32_t failed = moespac_configure(static_cast<int32_t>(head[2]), nullptr)) return failed;
    if (int32_t failed = moespac_experts(static_cast<int32_t>(head[0]), layout.data(), static_cast<int32_t>(head[1]),
                                         hidden.data(), head[6], experts.data(), head[3], made.data()))
      return failed;
    fwrite(made.data(), sizeof(float), made.size(), out);
  }
  return fclose(out) ? 4 : 0;
}
