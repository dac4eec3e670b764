// Which instruction sets this CPU and this system have.
#include "isa.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

namespace {

uint64_t enabled_state() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

uint32_t detect() {
  uint32_t found = 1u << kPortable, a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return found;
  const bool fma = c & bit_FMA, f16c = c & bit_F16C;
  const uint64_t state = enabled_state();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  if (ymm && fma && f16c && (b & bit_AVX2)) found |= 1u << kAvx2;
  const uint32_t wide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  if (!zmm || !fma || !f16c || (b & wide) != wide) return found;
  found |= 1u << kAvx512;
  if (!(c & bit_AVX512VNNI)) return found;
  found |= 1u << kAvx512Vnni;
  constexpr uint32_t kBf16 = 1u << 5;  // leaf 7.1, EAX
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kBf16)) found |= 1u << kAvx512Bf16;
  return found;
}

}  // namespace
#elif defined(__aarch64__)
namespace {
uint32_t detect() { return 1u << kPortable | 1u << kNeon; }
}  // namespace
#else
namespace {
uint32_t detect() { return 1u << kPortable; }
}  // namespace
#endif

const MoeKernels* moespac_kernels(int32_t isa) {
  switch (isa) {
    case kPortable: return moespac_kernels_portable();
    case kAvx2: return moespac_kernels_avx2();
    case kAvx512: return moespac_kernels_avx512();
    case kAvx512Vnni: return moespac_kernels_avx512_vnni();
    case kAvx512Bf16: return moespac_kernels_avx512_bf16();
    case kNeon: return moespac_kernels_neon();
    default: return nullptr;
  }
}

uint32_t moespac_isas() {
  // What the compiler could not build is not there either.
  static const uint32_t found = [] {
    uint32_t both = 0;
    for (int32_t i = 0; i < kIsas; ++i)
      if ((detect() >> i & 1) && moespac_kernels(i) != nullptr) both |= 1u << i;
    return both;
  }();
  return found;
}

MoeChosen moespac_choose(int32_t isa, int32_t format, int32_t compute) {
  if (isa < 0 || isa >= kIsas || format < 0 || format >= kFormats || !(moespac_isas() >> isa & 1)) return {};
  const MoeKernels* kernels = moespac_kernels(isa);
  if (compute == kComputeBF16 && kernels->rows_bf16[format] != nullptr)
    return {kernels->rows_bf16[format], kernels->operand_bf16[format]};
  return {kernels->rows[format], kOperandF32};
}
