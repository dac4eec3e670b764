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
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// Bytes of one token's operand of `columns` features.
inline int64_t operand_bytes(MoeOperand kind, int64_t columns) {
  switch (kind) {
    case kOperandF32: return columns * 4;
    case kOperandBF16: return columns * 2;
    case kOperandQ8: return kStartBytes + (columns + 63) / 64 * static_cast<int64_t>(sizeof(MoeQ8));
    case kOperandQ8Runs: return (columns + 127) / 128 * static_cast<int64_t>(sizeof(MoeQ8Runs));
  }
  return 0;
}

// `q`: up to 32 values rounded to 8 bits; returns their scale. Nothing but zeros: scale 0. What is not finite stays so
// by its scale. Loops without branches or calls, for the compiler to make vectors of.
inline float to_q8(const float* x, int64_t n, int8_t* q) {
  int32_t bits[32] = {}, largest_bits = 0;
  std::memcpy(bits, x, n * sizeof(float));
  for (int i = 0; i < 32; ++i) {  // of floats without their sign, the larger has the larger bits
    const int32_t without_sign = bits[i] & 0x7fffffff;
    largest_bits = without_sign > largest_bits ? without_sign : largest_bits;
  }
  float largest, padded[32];
  std::memcpy(&largest, &largest_bits, 4);
  std::memcpy(padded, bits, sizeof(padded));
  const float scale = largest / 127, inverse = scale > 0 ? 1 / scale : 0;
  for (int i = 0; i < 32; ++i) {
    // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits.
    const float shifted = padded[i] * inverse + 12582912.f;
    std::memcpy(&bits[i], &shifted, 4);
  }
  for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(bits[i]);
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
    auto* start = reinterpret_cast<float*>(out);
    if (kind == kOperandQ8) out += kStartBytes;
    for (int64_t k = 0; k < columns; k += 32) {
      int8_t q[32];
      const float scale = to_q8(x + k, columns - k < 32 ? columns - k : 32, q);
      if (kind == kOperandQ8) {  // weights come with 128 added: four products share a lane
        auto* record = reinterpret_cast<MoeQ8*>(out) + k / 64;
        const int64_t at = k % 64;
        std::memcpy(record->q + at, q, 32);
        for (int lane = 0; lane < 8; ++lane) {
          const int8_t* four = q + 4 * lane;
          start[at / 4 + lane] -= scale * static_cast<float>(128 * (four[0] + four[1] + four[2] + four[3]));
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

// Operands of a call's tokens, each made once however many experts want it, in memory that is kept from call to call.
class Operands {
 public:
  // `hidden`: [tokens, columns] in the compute type. The operands are there once `make` has run for each index < tokens.
  void prepare(MoeOperand kind, int32_t compute, const void* hidden, int64_t tokens, int64_t columns) {
    kind_ = kind, compute_ = compute, columns_ = columns;
    source_ = static_cast<const uint8_t*>(hidden);
    as_they_are_ = (kind == kOperandF32 && compute == kComputeF32) || (kind == kOperandBF16 && compute == kComputeBF16);
    bytes_ = operand_bytes(kind, columns);
    if (!as_they_are_) {
      memory_.resize(tokens * bytes_ + 64);
      to_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) & ~uintptr_t{63});
    }
  }
  bool as_they_are() const { return as_they_are_; }
  void make(int64_t token) {
    const uint8_t* source = source_ + token * columns_ * (compute_ == kComputeF32 ? 4 : 2);
    if (compute_ == kComputeF32) return make_operand(kind_, reinterpret_cast<const float*>(source), columns_, at(token));
    static thread_local std::vector<float> floats;
    floats.resize(columns_);
    for (int64_t i = 0; i < columns_; ++i) floats[i] = from_bf16(reinterpret_cast<const uint16_t*>(source)[i]);
    make_operand(kind_, floats.data(), columns_, at(token));
  }
  const void* of(int64_t token) const { return as_they_are_ ? source_ + token * bytes_ : to_ + token * bytes_; }

 private:
  uint8_t* at(int64_t token) { return to_ + token * bytes_; }

  MoeOperand kind_;
  int32_t compute_;
  int64_t columns_, bytes_;
  bool as_they_are_;
  const uint8_t* source_;
  uint8_t* to_ = nullptr;
  std::vector<uint8_t> memory_;
};

}  // namespace moespac
