// The C interface of the library: plain structs and functions, so that it can be loaded without linking to anything.
#pragma once
#include <cstdint>

#define MOESPAC_ABI 2

enum MoeFormat : int32_t { kF32, kBF16, kF16, kInt8, kInt4G32, kInt4G128, kFormats };
enum MoeCompute : int32_t { kComputeF32, kComputeBF16 };
enum MoeGate : int32_t { kGlu, kNoGate, kClamped, kClampedAfter, kClampedSigmoid };
enum MoeActivation : int32_t { kSilu, kGelu, kGeluTanh, kRelu, kRelu2, kSigmoid, kTanh, kIdentity };

#pragma GCC visibility push(default)
extern "C" {

// An expert's block: offsets in bytes of its parts, -1 for those that it lacks.
struct MoeLayout {
  int64_t hidden, inner;
  int64_t gate_up, down, gate_up_scales, down_scales, gate_up_bias, down_bias, norm;
  int32_t format, scales_are_bf16, activation, gate;
  float gate_limit, gate_alpha, norm_eps;
};

// One expert of a call: m tokens, rows of the call's hidden states, and their router weights.
struct MoeExpert {
  const uint8_t* block;
  const int64_t* token_rows;
  const float* router_weights;
  int64_t m;
};

// Attention of `tokens` new tokens over `positions` cached ones, the new included. Strides count elements; the last
// dimension of everything is contiguous. query: [heads, tokens, size]; keys, values: [kv_heads, positions, size or
// value_size]; mask, added to scaled scores: [tokens, positions] or null; out: [tokens, heads, value_size]. All of them in
// the compute type.
struct MoeAttention {
  const void *query, *keys, *values, *mask;
  void* out;
  int64_t heads, kv_heads, tokens, positions, size, value_size;
  int64_t query_head_stride, query_token_stride, key_head_stride, key_stride, value_head_stride, value_stride, mask_stride;
  float scale;
  int32_t compute;
};

int32_t moespac_abi();
// Of the sources that the library was made from.
const char* moespac_source_digest();
// Bit i: the CPU and the system support instruction set i (see isa.h).
uint32_t moespac_isas();
// Threads that calls use, the caller's own included; cpus: one for each to be pinned to, or null. 0, or an errno.
int32_t moespac_configure(int32_t threads, const int32_t* cpus);
int32_t moespac_threads();

// out: float32 [sum of m, hidden]. hidden: [tokens, hidden] in the compute type. 0, or an errno: ERANGE where token_rows
// are not all in 0..tokens - 1.
int32_t moespac_experts(int32_t isa, const MoeLayout* layout, int32_t compute, const void* hidden, int64_t tokens,
                        const MoeExpert* experts, int64_t n, float* out);
// y [m, rows] = x [m, columns] W^T (+ bias): x and y in the compute type, bias float32 or null. 0, or an errno.
int32_t moespac_linear(int32_t isa, int32_t format, int32_t scales_are_bf16, const void* weight, const void* scales,
                       int64_t rows, int64_t columns, int32_t compute, const void* x, int64_t m, const float* bias,
                       void* y);
// 0, or an errno.
int32_t moespac_attention(int32_t isa, const MoeAttention* call);
// Reads all bytes on all threads with one of several loops; for measuring bandwidth. Returns a sum of what was read.
int64_t moespac_read(const void* data, int64_t bytes, int32_t loop);
}
#pragma GCC visibility pop
