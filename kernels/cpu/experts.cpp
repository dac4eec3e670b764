// A layer's share of experts, and linear layers: work cut into rows, rows shared out to threads.
#include <errno.h>

#include <algorithm>
#include <cmath>
#include <new>

#include "isa.h"
#include "operands.h"
#include "pool.h"

using namespace moespac;

namespace {

// Weights that a thread takes at a time: large enough to stream, small enough to share out evenly.
constexpr int64_t kChunkBytes = 128 * 1024;

struct Locked {
  Locked() { lock(); }
  ~Locked() { unlock(); }
};

float activate(int32_t activation, float x) {
  switch (activation) {
    case kSilu: return x / (1 + std::exp(-x));
    case kGelu: return 0.5f * x * (1 + std::erf(x * 0.70710678118654752f));
    case kGeluTanh: return 0.5f * x * (1 + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case kRelu: return std::fmax(x, 0.f);
    case kRelu2: return std::fmax(x, 0.f) * std::fmax(x, 0.f);
    case kSigmoid: return 1 / (1 + std::exp(-x));
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
      return (u + 1) * (g / (1 + std::exp(-layout.gate_alpha * g)));
    }
    default: return activate(layout.activation, g) * u;
  }
}

// A format's row kernel and the operand that it wants.
struct Chosen {
  MoeRows rows;
  MoeOperand operand;
};

Chosen choose(int32_t isa, int32_t format, int32_t compute) {
  if (isa < 0 || isa >= kIsas || format < 0 || format >= kFormats || !(moespac_isas() >> isa & 1)) return {};
  const MoeKernels* kernels = moespac_kernels(isa);
  if (compute == kComputeBF16 && kernels->rows_bf16[format] != nullptr)
    return {kernels->rows_bf16[format], kernels->operand_bf16[format]};
  return {kernels->rows[format], kOperandF32};
}

MoeMatrix matrix(int32_t format, int32_t scales_are_bf16, const uint8_t* weight, const uint8_t* scales,
                 int64_t columns) {
  static const int64_t bytes[] = {4, 2, 2, 1};
  const bool int4 = format >= kInt4G32;
  const int64_t group = format == kInt4G32 ? 32 : 128;
  return {weight, scales, columns, int4 ? (columns + 31) / 32 * 16 : columns * bytes[format],
          int4 ? (columns + group - 1) / group : 1, scales_are_bf16};
}

int64_t rows_a_chunk(const MoeMatrix& matrix) {
  return std::max<int64_t>(8, kChunkBytes / std::max<int64_t>(1, matrix.row_bytes) / 8 * 8);
}

const uint8_t* part(const uint8_t* block, int64_t offset) { return offset < 0 ? nullptr : block + offset; }

// One call's work on one expert.
struct Work {
  MoeExpert expert;
  MoeMatrix gate_up, down;
  const float *gate_up_bias, *down_bias, *norm;
  Operands hidden;
  std::vector<const void*> inner;  // operand of each token for the down projection
  int64_t first_row;               // of its rows in the output
};

struct Call {
  MoeLayout layout;
  Chosen chosen;
  std::vector<Work> work;
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
  if (has_gate) call.chosen.rows(work.gate_up, first, last, work.hidden.pointers(), m, gate, n);
  call.chosen.rows(work.gate_up, up_at + first, up_at + last, work.hidden.pointers(), m, up, n);
  const float* bias = work.gate_up_bias;
  for (int64_t t = 0; t < m; ++t) {
    const int64_t row = work.first_row + t;
    for (int64_t i = 0; i < n; ++i) {
      float g = has_gate ? gate[t * n + i] : 0, u = up[t * n + i];
      if (bias != nullptr) {
        if (has_gate) g += bias[first + i];
        u += bias[up_at + first + i];
      }
      const float value = gated(layout, g, u);
      if (call.chosen.operand == kOperandBF16)
        reinterpret_cast<uint16_t*>(call.aligned + row * call.inner_bytes)[first + i] = to_bf16(value);
      else
        call.floats[row * layout.inner + first + i] = value;
    }
  }
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

void prepare(Call& call, int32_t compute, const void* hidden, const MoeExpert* experts, int64_t n) {
  const MoeLayout& layout = call.layout;
  const int64_t inner = layout.inner;
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
    work.hidden.gather(call.chosen.operand, compute, hidden, experts[e].token_rows, experts[e].m, layout.hidden);
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
  call.rows_up = rows_a_chunk(call.work[0].gate_up);
  call.chunks_up = (inner + call.rows_up - 1) / call.rows_up;
  call.rows_down = rows_a_chunk(call.work[0].down);
  call.chunks_down = (layout.hidden + call.rows_down - 1) / call.rows_down;
}

struct Linear {
  Chosen chosen;
  MoeMatrix matrix;
  Operands x;
  int64_t rows, rows_a_chunk, m;
  int32_t compute;
  const float* bias;
  void* y;
};

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
  call.chosen.rows(call.matrix, first, last, call.x.pointers(), call.m, y, ldy);
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
                        const MoeExpert* experts, int64_t n, float* out) {
  const Chosen chosen = choose(isa, layout->format, compute);
  if (chosen.rows == nullptr) return ENOTSUP;
  if (n < 1) return 0;
  Locked held;
  static Call call;  // keeps its memory from call to call
  try {
    call.layout = *layout;
    call.chosen = chosen;
    call.out = out;
    prepare(call, compute, hidden, experts, n);
  } catch (const std::bad_alloc&) {
    return ENOMEM;
  }
  run(n * call.chunks_up, up_chunk, &call);
  if (chosen.operand == kOperandQ8 || chosen.operand == kOperandQ8Runs) run(call.total, operand_row, &call);
  run(n * call.chunks_down, down_chunk, &call);
  if (layout->norm >= 0) run(n, norm_expert, &call);
  return 0;
}

int32_t moespac_linear(int32_t isa, int32_t format, int32_t scales_are_bf16, const void* weight, const void* scales,
                       int64_t rows, int64_t columns, int32_t compute, const void* x, int64_t m, const float* bias,
                       void* y) {
  const Chosen chosen = choose(isa, format, compute);
  if (chosen.rows == nullptr) return ENOTSUP;
  Locked held;
  static Linear call;
  try {
    call.chosen = chosen;
    call.matrix = matrix(format, scales_are_bf16, static_cast<const uint8_t*>(weight),
                         static_cast<const uint8_t*>(scales), columns);
    call.x.gather(chosen.operand, compute, x, nullptr, m, columns);
  } catch (const std::bad_alloc&) {
    return ENOMEM;
  }
  call.rows = rows;
  call.rows_a_chunk = rows_a_chunk(call.matrix);
  call.m = m;
  call.compute = compute;
  call.bias = bias;
  call.y = y;
  run((rows + call.rows_a_chunk - 1) / call.rows_a_chunk, linear_chunk, &call);
  return 0;
}
