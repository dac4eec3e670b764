// What an instruction set provides, and which there are.
#pragma once
#include "abi.h"

enum MoeIsa : int32_t { kPortable, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kNeon, kIsas };

// Activations of one call as the row kernels want them.
enum MoeOperand : int32_t { kOperandF32, kOperandBF16, kOperandQ8, kOperandQ8Runs };

struct MoeMatrix {
  const uint8_t* weight;
  const uint8_t* scales;
  int64_t columns, row_bytes, scales_per_row;
  int32_t scales_are_bf16;
};

// y[t * ldy + (r - first)] = dot(row r of the matrix, x[t]) for first <= r < last and t < m.
using MoeRows = void (*)(const MoeMatrix& matrix, int64_t first, int64_t last, const void* const* x, int64_t m,
                         float* y, int64_t ldy);

// A head's values: rows of float32 or bfloat16, `row_bytes` apart.
struct MoeValues {
  const uint8_t* data;
  int64_t rows, columns, row_bytes;
};

// y[t * ldy + c] = sum over rows s of w[t * ldw + s] * values[s][c], for t < m.
using MoeMix = void (*)(const MoeValues& values, const float* w, int64_t ldw, int64_t m, float* y, int64_t ldy);

struct MoeKernels {
  MoeRows rows[kFormats];              // operands in float32
  MoeRows rows_bf16[kFormats];         // compute type bfloat16: null where float32 operands serve
  MoeOperand operand_bf16[kFormats];   // what rows_bf16 wants
  MoeMix mix[2];                       // of float32 and of bfloat16
};

// A format's row kernel and the operand that it wants; null where this machine has none.
struct MoeChosen {
  MoeRows rows;
  MoeOperand operand;
};
MoeChosen moespac_choose(int32_t isa, int32_t format, int32_t compute);

// Null where there is none.
const MoeKernels* moespac_kernels(int32_t isa);
const MoeKernels* moespac_kernels_portable();
const MoeKernels* moespac_kernels_avx2();
const MoeKernels* moespac_kernels_avx512();
const MoeKernels* moespac_kernels_avx512_vnni();
const MoeKernels* moespac_kernels_avx512_bf16();
const MoeKernels* moespac_kernels_neon();

// Operands of 8 bits: 32 features share a scale. Each 64 (kOperandQ8) or 128 (kOperandQ8Runs) features make a record,
// the last one padded with zeros. Weights are multiplied with an offset; `start` makes up for it. With int8 that is the
// same for all rows: 16 floats before the records. With int4, whose scales change along a row, it stands in each record.
constexpr int64_t kStartBytes = 64;
struct MoeQ8 {
  int8_t q[64];
  float scale[16];
};
struct MoeQ8Runs {
  int8_t low[64], high[64];
  int32_t start[16];
  float scale[16];
};
