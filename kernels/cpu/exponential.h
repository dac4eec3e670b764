// The exponential function of activations and of attention.
#pragma once
#include <cstdint>
#include <cstring>

namespace moespac {

// e^x within 2 units in the last place, without calls or branches, for the compiler to make vectors of. Beyond what a
// float holds: the nearest that it does hold. Range reduction and polynomial as in Cephes' expf (Moshier).
inline float exponential(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  const float shifted = x * 1.44269504f + 12582912.f;  // 1.5 * 2^23: the nearest integer lies in the low bits
  const float n = shifted - 12582912.f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = static_cast<int32_t>(static_cast<uint32_t>(bits) << 23) + 0x3f800000;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

}  // namespace moespac
