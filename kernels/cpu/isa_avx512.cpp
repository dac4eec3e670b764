// AVX-512 F, BW, DQ and VL, compiled three times: as it is, with VNNI, and with VNNI and BF16, for CPUs that multiply
// 8-bit integers and pairs of bfloat16. MOESPAC_KERNELS names the function that each compilation defines.
#include <cstring>

#include "isa.h"
#include "rows.inc"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

namespace {

struct Vectors {
  static constexpr int kLanes = 16, kRows = 4;
  using Floats = __m512;
  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static Floats load(const BF16* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static Floats load(const F16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Floats load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static Floats nibbles(const uint8_t* p, bool high) {
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    if (high) wide = _mm512_srli_epi32(wide, 4);
    // The permutation looks at the low four bits alone.
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(wide, values);
  }
  static float half(uint16_t bits) { return _cvtsh_ss(bits); }
  static Floats scaled(Floats a, float s) { return _mm512_mul_ps(a, _mm512_set1_ps(s)); }
  static Floats same(float s) { return _mm512_set1_ps(s); }
  static void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  // Sums of each vector's lanes: halves are added, then quarters, pairs, and the last two, four vectors at a time.
  template <int N>
  static void sums(const Floats* a, float* out) {
    if constexpr (N == 1) {
      const __m512 four[] = {a[0], zero(), zero(), zero()};
      out[0] = _mm_cvtss_f32(sums_of_four(four));
    } else if constexpr (N == 2) {
      const __m512 four[] = {a[0], a[1], zero(), zero()};
      _mm_storel_pi(reinterpret_cast<__m64*>(out), sums_of_four(four));
    } else {
      for (int i = 0; i < N; i += 4) _mm_storeu_ps(out + i, sums_of_four(a + i));
    }
  }
  static __m128 sums_of_four(const __m512* a) {
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a[0], a[1], 0x44), _mm512_shuffle_f32x4(a[0], a[1], 0xee));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(a[2], a[3], 0x44), _mm512_shuffle_f32x4(a[2], a[3], 0xee));
    __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
    return _mm512_castps512_ps128(
        _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), all));
  }
};

#if defined(__AVX512BF16__)

struct PairsBF16 {
  static constexpr int64_t kStep = 32;
  static constexpr int kBits = 16;
  static constexpr int kRows = 4;
  static constexpr bool kAddsKeepUp = true;
  using Acc = __m512;
  using Weights = __m512bh;
  using Operand = __m512bh;
  struct Row {
    const uint16_t* w;
  };
  static Row row(const MoeMatrix& matrix, int64_t r) {
    return {reinterpret_cast<const uint16_t*>(matrix.weight + r * matrix.row_bytes)};
  }
  static Acc start(const void*) { return _mm512_setzero_ps(); }
  static __m512bh load(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static __m512bh load_tail(const uint16_t* p, int64_t n) {
    return (__m512bh)_mm512_maskz_loadu_epi16((__mmask32)((uint64_t{1} << n) - 1), p);
  }
  static Weights weights(const Row& row, int64_t k) { return load(row.w + k); }
  static Weights weights_tail(const Row& row, int64_t k, int64_t n) { return load_tail(row.w + k, n); }
  static Operand operand(const void* x, int64_t k) { return load(static_cast<const uint16_t*>(x) + k); }
  static Operand operand_tail(const void* x, int64_t k, int64_t n) {
    return load_tail(static_cast<const uint16_t*>(x) + k, n);
  }
  static Acc add(Acc acc, Weights w, Operand x) { return _mm512_dpbf16_ps(acc, w, x); }
  template <int N>
  static void sums(const Acc* acc, float* out) {
    Vectors::sums<N>(acc, out);
  }
  static float finish(const Row&, float sum) { return sum; }
};

#endif

#if defined(__AVX512VNNI__)

struct BytesQ8 {
  static constexpr int64_t kStep = 64;
  static constexpr int kBits = 8;
  static constexpr int kRows = 4;
  static constexpr bool kAddsKeepUp = true;
  using Acc = __m512;
  using Weights = __m512i;
  struct Operand {
    __m512i q;
    __m512 scale;
  };
  using Row = Int8Format<Vectors>::Row;
  static Row row(const MoeMatrix& matrix, int64_t r) { return Int8Format<Vectors>::row(matrix, r); }
  static Acc start(const void* x) { return _mm512_loadu_ps(x); }
  // The instruction wants one side unsigned: weights plus 128, made up for by what additions start from.
  static Weights weights(const Row& row, int64_t k) {
    return _mm512_xor_si512(_mm512_loadu_si512(row.w + k), _mm512_set1_epi8(-128));
  }
  static Weights weights_tail(const Row& row, int64_t k, int64_t n) {
    const __m512i w = _mm512_maskz_loadu_epi8((uint64_t{1} << n) - 1, row.w + k);
    return _mm512_xor_si512(w, _mm512_set1_epi8(-128));
  }
  static Operand operand(const void* x, int64_t k) {
    const auto* record = reinterpret_cast<const MoeQ8*>(static_cast<const uint8_t*>(x) + kStartBytes) + k / kStep;
    return {_mm512_loadu_si512(record->q), _mm512_loadu_ps(record->scale)};
  }
  static Operand operand_tail(const void* x, int64_t k, int64_t) { return operand(x, k); }
  static Acc add(Acc acc, Weights w, const Operand& x) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w, x.q)), x.scale, acc);
  }
  template <int N>
  static void sums(const Acc* acc, float* out) {
    Vectors::sums<N>(acc, out);
  }
  static float finish(const Row& row, float sum) { return sum * row.scale; }
};

template <int Group>
struct NibblesQ8 {
  static constexpr int64_t kStep = 128;
  static constexpr int kBits = 4;
  static constexpr int kRows = 4;
  static constexpr bool kAddsKeepUp = true;
  using Acc = __m512;
  struct Weights {
    __m512i low, high;
    __m512 scale;
  };
  struct Operand {
    __m512i low, high, start;
    __m512 scale;
  };
  struct Row {
    const uint8_t* w;
    const uint16_t* scales;
    int64_t n_scales;
    bool bf16;
  };
  static Row row(const MoeMatrix& matrix, int64_t r) {
    return {matrix.weight + r * matrix.row_bytes,
            reinterpret_cast<const uint16_t*>(matrix.scales) + r * matrix.scales_per_row, matrix.scales_per_row,
            matrix.scales_are_bf16 != 0};
  }
  static Acc start(const void*) { return _mm512_setzero_ps(); }
  static __m512 widened(const Row& row, __m128i bits) {
    return row.bf16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_castsi128_si256(bits)), 16))
                    : _mm512_castps128_ps512(_mm_cvtph_ps(bits));
  }
  // Four lanes for each of the step's four runs.
  static __m512 scales(const Row& row, __m128i bits) {
    const __m512i lanes = Group == 32 ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
                                      : _mm512_setzero_si512();
    return _mm512_permutexvar_ps(lanes, widened(row, bits));
  }
  static Weights split(__m512i bytes, __m512 scale) {
    const __m512i low = _mm512_set1_epi8(15);
    return {_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low), scale};
  }
  static Weights weights(const Row& row, int64_t k) {
    const uint16_t* first = row.scales + k / Group;
    const __m128i bits = Group == 32 ? _mm_loadl_epi64(reinterpret_cast<const __m128i*>(first))
                                     : _mm_cvtsi32_si128(*first);
    return split(_mm512_loadu_si512(row.w + k / 2), scales(row, bits));
  }
  static Weights weights_tail(const Row& row, int64_t k, int64_t n) {
    uint16_t padded[8] = {};
    for (int64_t i = 0; k / Group + i < row.n_scales; ++i) padded[i] = row.scales[k / Group + i];
    const int64_t bytes = (n + 31) / 32 * 16;
    return split(_mm512_maskz_loadu_epi8(~uint64_t{0} >> (64 - bytes), row.w + k / 2),
                 scales(row, _mm_loadu_si128(reinterpret_cast<const __m128i*>(padded))));
  }
  static Operand operand(const void* x, int64_t k) {
    const auto* record = static_cast<const MoeQ8Runs*>(x) + k / kStep;
    return {_mm512_loadu_si512(record->low), _mm512_loadu_si512(record->high), _mm512_loadu_si512(record->start),
            _mm512_loadu_ps(record->scale)};
  }
  static Operand operand_tail(const void* x, int64_t k, int64_t) { return operand(x, k); }
  static Acc add(Acc acc, const Weights& w, const Operand& x) {
    const __m512i sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(x.start, w.low, x.low), w.high, x.high);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(w.scale, x.scale), acc);
  }
  template <int N>
  static void sums(const Acc* acc, float* out) {
    Vectors::sums<N>(acc, out);
  }
  static float finish(const Row&, float sum) { return sum; }
};

#endif

constexpr MoeKernels all() {
  MoeKernels kernels = expanding<Vectors>();
#if defined(__AVX512BF16__)
  kernels.rows_bf16[kBF16] = rows<PairsBF16>, kernels.operand_bf16[kBF16] = kOperandBF16;
#endif
#if defined(__AVX512VNNI__)
  kernels.rows_bf16[kInt8] = rows<BytesQ8>, kernels.operand_bf16[kInt8] = kOperandQ8;
  kernels.rows_bf16[kInt4G32] = rows<NibblesQ8<32>>, kernels.operand_bf16[kInt4G32] = kOperandQ8Runs;
  kernels.rows_bf16[kInt4G128] = rows<NibblesQ8<128>>, kernels.operand_bf16[kInt4G128] = kOperandQ8Runs;
#endif
  return kernels;
}

constexpr MoeKernels kKernels = all();

}  // namespace

const MoeKernels* MOESPAC_KERNELS() { return &kKernels; }
#else
const MoeKernels* MOESPAC_KERNELS() { return nullptr; }
#endif
