// For any CPU: the compiler makes of these loops what its default flags allow.
#include <cstring>

#include "isa.h"
#include "rows.inc"

namespace {

struct Vectors {
  static constexpr int kLanes = 8, kRows = 2;
  struct Floats {
    float v[kLanes];
  };
  static Floats zero() { return {}; }
  static Floats load(const float* p) {
    Floats out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = p[i];
    return out;
  }
  static Floats load(const BF16* p) {
    Floats out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = bf16_to_float(p[i].bits);
    return out;
  }
  static Floats load(const F16* p) {
    Floats out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = half_to_float(p[i].bits);
    return out;
  }
  static Floats load(const int8_t* p) {
    Floats out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = p[i];
    return out;
  }
  static Floats nibbles(const uint8_t* p, bool high) {
    Floats out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = static_cast<float>((high ? p[i] >> 4 : p[i] & 15) - 8);
    return out;
  }
  static float half(uint16_t bits) { return half_to_float(bits); }
  static Floats scaled(Floats a, float s) {
    for (int i = 0; i < kLanes; ++i) a.v[i] *= s;
    return a;
  }
  static Floats same(float s) {
    Floats out;
    for (float& lane : out.v) lane = s;
    return out;
  }
  static void store(float* p, const Floats& a) { std::memcpy(p, a.v, sizeof(a.v)); }
  static Floats fma(const Floats& a, const Floats& b, Floats c) {
    for (int i = 0; i < kLanes; ++i) c.v[i] += a.v[i] * b.v[i];
    return c;
  }
  template <int N>
  static void sums(const Floats* a, float* out) {
    for (int i = 0; i < N; ++i) out[i] = sum(a[i]);
  }
  static float sum(const Floats& a) {
    return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7]));
  }
};

constexpr MoeKernels kKernels = expanding<Vectors>();

}  // namespace

const MoeKernels* moespac_kernels_portable() { return &kKernels; }
