// Activations as the row kernels want them.
#pragma once
#include <cmath>
#include <cstring>
#include <vector>

#include "isa.h"

namespace moespac {

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// To the nearest, ties to even, as torch rounds.
inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Bytes of one token's operand of `columns` features.
inline int64_t operand_bytes(MoeOperand kind, int64_t columns) {
  switch (kind) {
    case kOperandF32: return columns * 4;
    case kOperandBF16: return columns * 2;
    case kOperandQ8: return (columns + 63) / 64 * static_cast<int64_t>(sizeof(MoeQ8));
    case kOperandQ8Runs: return (columns + 127) / 128 * static_cast<int64_t>(sizeof(MoeQ8Runs));
  }
  return 0;
}

// `q`: 32 values rounded to 8 bits; returns their scale. Nothing but zeros: scale 0.
inline float to_q8(const float* x, int64_t n, int8_t* q) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::fmax(largest, std::fabs(x[i]));
  const float scale = largest / 127, inverse = scale > 0 ? 1 / scale : 0;
  for (int64_t i = 0; i < n; ++i) q[i] = static_cast<int8_t>(std::lrintf(std::fmin(127, std::fmax(-127, x[i] * inverse))));
  return scale;
}

inline void make_operand(MoeOperand kind, const float* x, int64_t columns, uint8_t* out) {
  if (kind == kOperandF32) {
    std::memcpy(out, x, columns * 4);
  } else if (kind == kOperandBF16) {
    auto* to = reinterpret_cast<uint16_t*>(out);
    for (int64_t i = 0; i < columns; ++i) to[i] = to_bf16(x[i]);
  } else {
    std::memset(out, 0, operand_bytes(kind, columns));
    for (int64_t k = 0; k < columns; k += 32) {
      int8_t q[32] = {};
      const float scale = to_q8(x + k, columns - k < 32 ? columns - k : 32, q);
      if (kind == kOperandQ8) {  // weights come with 128 added: four products share a lane
        auto* record = reinterpret_cast<MoeQ8*>(out) + k / 64;
        const int64_t at = k % 64;
        std::memcpy(record->q + at, q, 32);
        for (int lane = 0; lane < 8; ++lane) {
          const int8_t* four = q + 4 * lane;
          record->start[at / 4 + lane] = -128 * (four[0] + four[1] + four[2] + four[3]);
          record->scale[at / 4 + lane] = scale;
        }
      } else {  // weights come with 8 added, columns j and j + 16 of a run in the same lane
        auto* record = reinterpret_cast<MoeQ8Runs*>(out) + k / 128;
        const int64_t run = k % 128 / 32;
        std::memcpy(record->low + 16 * run, q, 16);
        std::memcpy(record->high + 16 * run, q + 16, 16);
        for (int lane = 0; lane < 4; ++lane) {
          int32_t sum = 0;
          for (int i = 0; i < 4; ++i) sum += q[4 * lane + i] + q[16 + 4 * lane + i];
          record->start[4 * run + lane] = -8 * sum;
          record->scale[4 * run + lane] = scale;
        }
      }
    }
  }
}

// Operands of several tokens, in memory that is kept from call to call.
class Operands {
 public:
  // `hidden`: [.., columns] in the compute type; `rows`: which of its rows, null for the first m.
  void gather(MoeOperand kind, int32_t compute, const void* hidden, const int64_t* rows, int64_t m, int64_t columns) {
    const int64_t bytes = operand_bytes(kind, columns);
    pointers_.resize(m);
    const bool as_it_is = (kind == kOperandF32 && compute == kComputeF32) || (kind == kOperandBF16 && compute == kComputeBF16);
    if (!as_it_is) memory_.resize(m * bytes + 64), floats_.resize(columns);
    auto* aligned = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) & ~uintptr_t{63});
    for (int64_t t = 0; t < m; ++t) {
      const int64_t row = rows == nullptr ? t : rows[t];
      const auto* source = static_cast<const uint8_t*>(hidden) + row * columns * (compute == kComputeF32 ? 4 : 2);
      if (as_it_is) {
        pointers_[t] = source;
        continue;
      }
      if (compute == kComputeBF16) {
        for (int64_t i = 0; i < columns; ++i) floats_[i] = from_bf16(reinterpret_cast<const uint16_t*>(source)[i]);
        source = reinterpret_cast<const uint8_t*>(floats_.data());
      }
      make_operand(kind, reinterpret_cast<const float*>(source), columns, aligned + t * bytes);
      pointers_[t] = aligned + t * bytes;
    }
  }
  const void* const* pointers() const { return pointers_.data(); }

 private:
  std::vector<uint8_t> memory_;
  std::vector<float> floats_;
  std::vector<const void*> pointers_;
};

}  // namespace moespac
