// AVX2 with FMA and F16C.
#include <cstring>

#include "isa.h"
#include "rows.inc"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

namespace {

struct Vectors {
  static constexpr int kLanes = 8, kRows = 2;
  using Floats = __m256;
  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static Floats load(const BF16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static Floats load(const F16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Floats load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static Floats nibbles(const uint8_t* p, bool high) {
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    wide = high ? _mm256_srli_epi32(wide, 4) : _mm256_and_si256(wide, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(wide, _mm256_set1_epi32(8)));
  }
  static float half(uint16_t bits) { return _cvtsh_ss(bits); }
  static Floats scaled(Floats a, float s) { return _mm256_mul_ps(a, _mm256_set1_ps(s)); }
  static Floats same(float s) { return _mm256_set1_ps(s); }
  static void store(float* p, Floats a) { _mm256_storeu_ps(p, a); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  template <int N>
  static void sums(const Floats* a, float* out) {
    for (int i = 0; i < N; ++i) out[i] = sum(a[i]);
  }
  static float sum(Floats a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
};

constexpr MoeKernels kKernels = expanding<Vectors>();

}  // namespace

const MoeKernels* moespac_kernels_avx2() { return &kKernels; }
#else
const MoeKernels* moespac_kernels_avx2() { return nullptr; }
#endif
