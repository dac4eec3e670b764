// NEON, as every 64-bit ARM has it.
#include <cstring>

#include "isa.h"
#include "rows.inc"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace {

struct Vectors {
  static constexpr int kLanes = 8, kRows = 2;
  struct Floats {
    float32x4_t low, high;
  };
  static Floats zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
  static Floats load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static Floats load(const BF16* p) {
    const uint16x8_t bits = vld1q_u16(reinterpret_cast<const uint16_t*>(p));
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(bits), 16))};
  }
  static Floats load(const F16* p) {
    const float16x8_t half = vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(p)));
    return {vcvt_f32_f16(vget_low_f16(half)), vcvt_f32_f16(vget_high_f16(half))};
  }
  static Floats widened(int8x8_t bytes) {
    const int16x8_t wide = vmovl_s8(bytes);
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)))};
  }
  static Floats load(const int8_t* p) { return widened(vld1_s8(p)); }
  static Floats nibbles(const uint8_t* p, bool high) {
    const uint8x8_t bytes = vld1_u8(p);
    const uint8x8_t values = high ? vshr_n_u8(bytes, 4) : vand_u8(bytes, vdup_n_u8(15));
    return widened(vsub_s8(vreinterpret_s8_u8(values), vdup_n_s8(8)));
  }
  static float half(uint16_t bits) { return half_to_float(bits); }
  static Floats scaled(Floats a, float s) { return {vmulq_n_f32(a.low, s), vmulq_n_f32(a.high, s)}; }
  static Floats same(float s) { return {vdupq_n_f32(s), vdupq_n_f32(s)}; }
  static void store(float* p, Floats a) {
    vst1q_f32(p, a.low);
    vst1q_f32(p + 4, a.high);
  }
  static Floats fma(Floats a, Floats b, Floats c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
  }
  template <int N>
  static void sums(const Floats* a, float* out) {
    for (int i = 0; i < N; ++i) out[i] = sum(a[i]);
  }
  static float sum(Floats a) { return vaddvq_f32(vaddq_f32(a.low, a.high)); }
};

constexpr MoeKernels kKernels = expanding<Vectors>();

}  // namespace

const MoeKernels* moespac_kernels_neon() { return &kKernels; }
#else
const MoeKernels* moespac_kernels_neon() { return nullptr; }
#endif
