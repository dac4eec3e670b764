// A layer's share of experts, and linear layers: work cut into rows, rows shared out to threads.
#include <errno.h>

#include <algorithm>
#include <cmath>
#include <new>

#include "exponential.h"
#include "isa.h"
#include "operands.h"
#include "pool.h"

using namespace moespac;

namespace {

// Weights that a thread takes at a time: as much as streams well, yet enough pieces to share out evenly.
constexpr int64_t kMostChunkBytes = 512 * 1024, kLeastChunkBytes = 64 * 1024, kChunksAThread = 8;

float activate(int32_t activation, float x) {
  switch (activation) {
    case kSilu: return x / (1 + exponential(-x));
    case kGelu: return 0.5f * x * (1 + std::erf(x * 0.70710678118654752f));
    case kGeluTanh: return 0.5f * x * (1 + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case kRelu: return std::fmax(x, 0.f);
    case kRelu2: return std::fmax(x, 0.f) * std::fmax(x, 0.f);
    case kSigmoid: return 1 / (1 + exponential(-x));
    case kTanh: return std::tanh(x);
    default: return x;
  }
}

float gated(const MoeLayout& layout, float g, float u) {
  const float limit = layout.gate_limit;
  switch (layout.gate) {
    case kNoGate: return activate(layout.activation, u);
    case kClamped: return activate(layout.activation, std::fmin(g, limit)) * std::fmin(std::fmax(u, -limit), limit);
    case kClampedAfter:
      return std::fmin(activate(layout.activation, g), limit) * std::fmin(std::fmax(u, -limit), limit);
    case kClampedSigmoid: {
      g = std::fmin(g, limit);
      u = std::fmin(std::fmax(u, -limit), limit);
      return (u + 1) * (g / (1 + exponential(-layout.gate_alpha * g)));
    }
    default: return activate(layout.activation, g) * u;
  }
}

// up = gated(gate, up), element by element. The usual gate is written out: vectors, not calls.
void gated(const MoeLayout& layout, const float* __restrict gate, float* __restrict up, int64_t n) {
  if (layout.gate == kGlu && layout.activation == kSilu)
    for (int64_t i = 0; i < n; ++i) up[i] *= gate[i] / (1 + exponential(-gate[i]));
  else
    for (int64_t i = 0; i < n; ++i) up[i] = gated(layout, gate[i], up[i]);
}

MoeMatrix matrix(int32_t format, int32_t scales_are_bf16, const uint8_t* weight, const uint8_t* scales,
                 int64_t columns) {
  static const int64_t bytes[] = {4, 2, 2, 1};
  const bool int4 = format >= kInt4G32;
  const int64_t group = format == kInt4G32 ? 32 : 128;
  return {weight, scales, columns, int4 ? (columns + 31) / 32 * 16 : columns * bytes[format],
          int4 ? (columns + group - 1) / group : 1, scales_are_bf16};
}

// `rows`: of this matrix and all others of the call together, on `threads` threads.
int64_t rows_a_chunk(const MoeMatrix& matrix, int64_t rows, int threads) {
  const int64_t even = rows * matrix.row_bytes / (threads * kChunksAThread);
  const int64_t bytes = std::min(kMostChunkBytes, std::max(kLeastChunkBytes, even));
  return std::max<int64_t>(8, bytes / std::max<int64_t>(1, matrix.row_bytes) / 8 * 8);
}

const uint8_t* part(const uint8_t* block, int64_t offset) { return offset < 0 ? nullptr : block + offset; }

// One call's work on one expert.
struct Work {
  MoeExpert expert;
  MoeMatrix gate_up, down;
  const float *gate_up_bias, *down_bias, *norm;
  std::vector<const void*> hidden, inner;  // operand of each token for up and down projections
  int64_t first_row;                       // of its rows in the output
};

struct Call {
  MoeLayout layout;
  MoeChosen chosen;
  std::vector<Work> work;
  Operands hidden;
  std::vector<int64_t> tokens;   // whose operands are to be made
  std::vector<uint8_t> wanted;   // [T]: some expert wants the token
  std::vector<float> floats;     // act(g) * u, [rows, inner]
  std::vector<uint8_t> operands; // the same as the row kernel wants it
  int64_t inner_bytes, chunks_up, rows_up, chunks_down, rows_down, total;
  uint8_t* aligned;
  float* out;
};

void up_chunk(void* context, int64_t index) {
  Call& call = *static_cast<Call*>(context);
  Work& work = call.work[index / call.chunks_up];
  const MoeLayout& layout = call.layout;
  const int64_t first = index % call.chunks_up * call.rows_up, last = std::min(first + call.rows_up, layout.inner);
  const int64_t n = last - first, m = work.expert.m;
  static thread_local std::vector<float> products;
  products.resize(2 * m * n);
  float *gate = products.data(), *up = gate + m * n;
  const bool has_gate = layout.gate != kNoGate;
  const int64_t up_at = has_gate ? layout.inner : 0;
  if (has_gate) call.chosen.rows(work.gate_up, first, last, work.hidden.data(), m, gate, n);
  call.chosen.rows(work.gate_up, up_at + first, up_at + last, work.hidden.data(), m, up, n);
  if (const float* bias = work.gate_up_bias; bias != nullptr)
    for (int64_t t = 0; t < m; ++t)
      for (int64_t i = 0; i < n; ++i) {
        if (has_gate) gate[t * n + i] += bias[first + i];
        up[t * n + i] += bias[up_at + first + i];
      }
  gated(layout, gate, up, m * n);
  for (int64_t t = 0; t < m; ++t) {
    const int64_t row = work.first_row + t;
    if (call.chosen.operand == kOperandBF16) {
      auto* to = reinterpret_cast<uint16_t*>(call.aligned + row * call.inner_bytes) + first;
      for (int64_t i = 0; i < n; ++i) to[i] = to_bf16(up[t * n + i]);
    } else {
      std::memcpy(call.floats.data() + row * layout.inner + first, up + t * n, n * sizeof(float));
    }
  }
}

void hidden_operand(void* context, int64_t index) {
  Call& call = *static_cast<Call*>(context);
  call.hidden.make(call.tokens[index]);
}

void operand_row(void* context, int64_t row) {
  Call& call = *static_cast<Call*>(context);
  make_operand(call.chosen.operand, call.floats.data() + row * call.layout.inner, call.layout.inner,
               call.aligned + row * call.inner_bytes);
}

void down_chunk(void* context, int64_t index) {
  Call& call = *static_cast<Call*>(context);
  Work& work = call.work[index / call.chunks_down];
  const int64_t hidden = call.layout.hidden;
  const int64_t first = index % call.chunks_down * call.rows_down, last = std::min(first + call.rows_down, hidden);
  float* out = call.out + work.first_row * hidden + first;
  call.chosen.rows(work.down, first, last, work.inner.data(), work.expert.m, out, hidden);
  for (int64_t t = 0; t < work.expert.m; ++t) {
    float* row = out + t * hidden;
    if (work.down_bias != nullptr)
      for (int64_t i = 0; i < last - first; ++i) row[i] += work.down_bias[first + i];
    if (work.norm == nullptr)
      for (int64_t i = 0; i < last - first; ++i) row[i] *= work.expert.router_weights[t];
  }
}

// RMS norm of y (1 + w), as transformers' MuseSpark has it.
void norm_expert(void* context, int64_t index) {
  Call& call = *static_cast<Call*>(context);
  Work& work = call.work[index];
  const int64_t hidden = call.layout.hidden;
  for (int64_t t = 0; t < work.expert.m; ++t) {
    float* row = call.out + (work.first_row + t) * hidden;
    double squares = 0;
    for (int64_t i = 0; i < hidden; ++i) {
      row[i] *= 1 + work.norm[i];
      squares += static_cast<double>(row[i]) * row[i];
    }
    const float scale = 1 / std::sqrt(static_cast<float>(squares / hidden) + call.layout.norm_eps);
    for (int64_t i = 0; i < hidden; ++i) row[i] = row[i] * scale * work.expert.router_weights[t];
  }
}

// False where a token's row lies outside of the hidden states.
bool prepare(Call& call, int32_t compute, const void* hidden, int64_t tokens, const MoeExpert* experts, int64_t n) {
  const MoeLayout& layout = call.layout;
  const int64_t inner = layout.inner;
  call.hidden.prepare(call.chosen.operand, compute, hidden, tokens, layout.hidden);
  call.wanted.assign(tokens, 0);
  call.tokens.clear();
  call.work.resize(n);
  call.total = 0;
  for (int64_t e = 0; e < n; ++e) {
    Work& work = call.work[e];
    const uint8_t* block = experts[e].block;
    const auto floats = [&](int64_t offset) { return reinterpret_cast<const float*>(part(block, offset)); };
    work.expert = experts[e];
    work.gate_up = matrix(layout.format, layout.scales_are_bf16, part(block, layout.gate_up),
                          part(block, layout.gate_up_scales), layout.hidden);
    work.down = matrix(layout.format, layout.scales_are_bf16, part(block, layout.down),
                       part(block, layout.down_scales), inner);
    work.gate_up_bias = floats(layout.gate_up_bias);
    work.down_bias = floats(layout.down_bias);
    work.norm = floats(layout.norm);
    work.first_row = call.total;
    work.hidden.resize(experts[e].m);
    for (int64_t t = 0; t < experts[e].m; ++t) {
      const int64_t token = experts[e].token_rows[t];
      if (token < 0 || token >= tokens) return false;
      if (!call.hidden.as_they_are() && !call.wanted[token]) call.tokens.push_back(token);
      call.wanted[token] = 1;
      work.hidden[t] = call.hidden.of(token);
    }
    call.total += experts[e].m;
  }
  call.inner_bytes = operand_bytes(call.chosen.operand, inner);
  if (call.chosen.operand != kOperandBF16) call.floats.resize(call.total * inner);
  if (call.chosen.operand != kOperandF32) call.operands.resize(call.total * call.inner_bytes + 64);
  call.aligned = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(call.operands.data()) + 63) & ~uintptr_t{63});
  for (Work& work : call.work) {
    work.inner.resize(work.expert.m);
    for (int64_t t = 0; t < work.expert.m; ++t) {
      const int64_t row = work.first_row + t;
      work.inner[t] = call.chosen.operand == kOperandF32 ? static_cast<const void*>(call.floats.data() + row * inner)
                                                         : call.aligned + row * call.inner_bytes;
    }
  }
  call.rows_up = rows_a_chunk(call.work[0].gate_up, n * inner, pool_size());
  call.chunks_up = (inner + call.rows_up - 1) / call.rows_up;
  call.rows_down = rows_a_chunk(call.work[0].down, n * layout.hidden, pool_size());
  call.chunks_down = (layout.hidden + call.rows_down - 1) / call.rows_down;
  return true;
}

struct Linear {
  MoeChosen chosen;
  MoeMatrix matrix;
  Operands x;
  std::vector<const void*> tokens;
  int64_t rows, rows_a_chunk, m;
  int32_t compute;
  const float* bias;
  void* y;
};

void linear_operand(void* context, int64_t token) { static_cast<Linear*>(context)->x.make(token); }

void linear_chunk(void* context, int64_t index) {
  Linear& call = *static_cast<Linear*>(context);
  const int64_t first = index * call.rows_a_chunk, last = std::min(first + call.rows_a_chunk, call.rows);
  const int64_t n = last - first;
  static thread_local std::vector<float> products;
  const bool direct = call.compute == kComputeF32;
  float* y = static_cast<float*>(call.y) + first;
  int64_t ldy = call.rows;
  if (!direct) {
    products.resize(call.m * n);
    y = products.data();
    ldy = n;
  }
  call.chosen.rows(call.matrix, first, last, call.tokens.data(), call.m, y, ldy);
  for (int64_t t = 0; t < call.m; ++t)
    for (int64_t i = 0; i < n; ++i) {
      if (call.bias != nullptr) y[t * ldy + i] += call.bias[first + i];
      if (!direct) static_cast<uint16_t*>(call.y)[t * call.rows + first + i] = to_bf16(y[t * ldy + i]);
    }
}

}  // namespace

const char* moespac_source_digest() { return MOESPAC_SOURCE_DIGEST; }
int32_t moespac_abi() { return MOESPAC_ABI; }
int32_t moespac_configure(int32_t threads, const int32_t* cpus) { return configure(threads, cpus); }
int32_t moespac_threads() { return threads(); }

int32_t moespac_experts(int32_t isa, const MoeLayout* layout, int32_t compute, const void* hidden,
                        int64_t tokens, const MoeExpert* experts, int64_t n, float* out) {
  const MoeChosen chosen = moespac_choose(isa, layout->format, compute);
  if (chosen.rows == nullptr) return ENOTSUP;
  if (n < 1) return 0;
  Locked held;
  static Call call;  // keeps its memory from call to call
  try {
    call.layout = *layout;
    call.chosen = chosen;
    call.out = out;
    if (!prepare(call, compute, hidden, tokens, experts, n)) return ERANGE;
  } catch (const std::bad_alloc&) {
    return ENOMEM;
  }
  run(static_cast<int64_t>(call.tokens.size()), hidden_operand, &call);
  run(n * call.chunks_up, up_chunk, &call);
  if (chosen.operand == kOperandQ8 || chosen.operand == kOperandQ8Runs) run(call.total, operand_row, &call);
  run(n * call.chunks_down, down_chunk, &call);
  if (layout->norm >= 0) run(n, norm_expert, &call);
  return 0;
}

int32_t moespac_linear(int32_t isa, int32_t format, int32_t scales_are_bf16, const void* weight, const void* scales,
                       int64_t rows, int64_t columns, int32_t compute, const void* x, int64_t m, const float* bias,
                       void* y) {
  const MoeChosen chosen = moespac_choose(isa, format, compute);
  if (chosen.rows == nullptr) return ENOTSUP;
  Locked held;
  static Linear call;
  try {
    call.chosen = chosen;
    call.matrix = matrix(format, scales_are_bf16, static_cast<const uint8_t*>(weight),
                         static_cast<const uint8_t*>(scales), columns);
    call.x.prepare(chosen.operand, compute, x, m, columns);
    call.tokens.resize(m);
    for (int64_t t = 0; t < m; ++t) call.tokens[t] = call.x.of(t);
  } catch (const std::bad_alloc&) {
    return ENOMEM;
  }
  call.rows = rows;
  call.rows_a_chunk = rows_a_chunk(call.matrix, rows, pool_size());
  call.m = m;
  call.compute = compute;
  call.bias = bias;
  call.y = y;
  if (!call.x.as_they_are()) run(m, linear_operand, &call);
  run((rows + call.rows_a_chunk - 1) / call.rows_a_chunk, linear_chunk, &call);
  return 0;
}
