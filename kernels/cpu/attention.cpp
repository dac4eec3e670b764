// Attention of a few tokens over a cache of keys and values, in place: nothing is copied, nothing rounded on the way.
#include <errno.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "exponential.h"
#include "isa.h"
#include "operands.h"
#include "pool.h"

using namespace moespac;

namespace {

// Query rows that share a reading of the keys: their scores stay in the caches for long contexts too.
constexpr int64_t kRowsATask = 32;
constexpr int kLanes = 8;  // of sums and maxima: a fixed order of additions that compilers make vectors of

struct Attention {
  MoeAttention call;
  MoeChosen chosen;
  MoeMix mix;
  int64_t group, tasks_a_head;
};

float value_at(const void* data, int64_t index, int32_t compute) {
  return compute == kComputeF32 ? static_cast<const float*>(data)[index]
                                : from_bf16(static_cast<const uint16_t*>(data)[index]);
}

// Positions that a mask excludes weigh exactly nothing: how many there are changes no bit.
void softmax(float* scores, int64_t n) {
  float largest[kLanes], sums[kLanes] = {};
  std::fill(largest, largest + kLanes, scores[0]);
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int l = 0; l < kLanes; ++l) largest[l] = scores[i + l] > largest[l] ? scores[i + l] : largest[l];
  float most = largest[0];
  for (int l = 1; l < kLanes; ++l) most = largest[l] > most ? largest[l] : most;
  for (int64_t i = whole; i < n; ++i) most = scores[i] > most ? scores[i] : most;
  for (int64_t i = 0; i < n; ++i) {
    const float below = scores[i] - most;
    scores[i] = below < -87.f ? 0.f : exponential(below);
  }
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int l = 0; l < kLanes; ++l) sums[l] += scores[i + l];
  for (int64_t i = whole; i < n; ++i) sums[i - whole] += scores[i];
  float sum = 0;
  for (float lane : sums) sum += lane;
  const float inverse = 1 / sum;
  for (int64_t i = 0; i < n; ++i) scores[i] *= inverse;
}

void mask_and_scale(const MoeAttention& call, int64_t token, float* scores) {
  const int64_t n = call.positions;
  if (call.mask == nullptr) {
    for (int64_t i = 0; i < n; ++i) scores[i] *= call.scale;
  } else if (call.compute == kComputeF32) {
    const float* mask = static_cast<const float*>(call.mask) + token * call.mask_stride;
    for (int64_t i = 0; i < n; ++i) scores[i] = scores[i] * call.scale + mask[i];
  } else {
    const uint16_t* mask = static_cast<const uint16_t*>(call.mask) + token * call.mask_stride;
    for (int64_t i = 0; i < n; ++i) scores[i] = scores[i] * call.scale + from_bf16(mask[i]);
  }
}

void attend(void* context, int64_t index) {
  Attention& all = *static_cast<Attention*>(context);
  const MoeAttention& call = all.call;
  const int64_t head = index / all.tasks_a_head, first = index % all.tasks_a_head * kRowsATask;
  const int64_t rows = std::min(kRowsATask, all.group * call.tokens - first), size = call.compute == kComputeF32 ? 4 : 2;
  static thread_local std::vector<float> scores, queries, outputs;
  scores.resize(rows * call.positions);
  outputs.resize(rows * call.value_size);
  const bool widen = all.chosen.operand == kOperandF32 && call.compute == kComputeBF16;
  if (widen) queries.resize(rows * call.size);
  const void* x[kRowsATask];
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t query_head = head * all.group + (first + r) / call.tokens, token = (first + r) % call.tokens;
    const auto* query = static_cast<const uint8_t*>(call.query) +
                        (query_head * call.query_head_stride + token * call.query_token_stride) * size;
    x[r] = query;
    if (!widen) continue;
    for (int64_t i = 0; i < call.size; ++i) queries[r * call.size + i] = value_at(query, i, call.compute);
    x[r] = queries.data() + r * call.size;
  }
  const auto* keys = static_cast<const uint8_t*>(call.keys) + head * call.key_head_stride * size;
  const MoeMatrix matrix{keys, nullptr, call.size, call.key_stride * size, 1, 0};
  all.chosen.rows(matrix, 0, call.positions, x, rows, scores.data(), call.positions);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores.data() + r * call.positions;
    mask_and_scale(call, (first + r) % call.tokens, row);
    softmax(row, call.positions);
  }
  const auto* values = static_cast<const uint8_t*>(call.values) + head * call.value_head_stride * size;
  all.mix({values, call.positions, call.value_size, call.value_stride * size}, scores.data(), call.positions, rows,
          outputs.data(), call.value_size);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t query_head = head * all.group + (first + r) / call.tokens, token = (first + r) % call.tokens;
    const int64_t at = (token * call.heads + query_head) * call.value_size;
    const float* from = outputs.data() + r * call.value_size;
    if (call.compute == kComputeF32)
      std::copy(from, from + call.value_size, static_cast<float*>(call.out) + at);
    else
      for (int64_t i = 0; i < call.value_size; ++i) static_cast<uint16_t*>(call.out)[at + i] = to_bf16(from[i]);
  }
}

}  // namespace

int32_t moespac_attention(int32_t isa, const MoeAttention* call) {
  const MoeChosen chosen = moespac_choose(isa, call->compute == kComputeF32 ? kF32 : kBF16, call->compute);
  if (chosen.rows == nullptr) return ENOTSUP;
  if (call->kv_heads < 1 || call->heads % call->kv_heads != 0 || call->tokens < 1 || call->positions < 1) return EINVAL;
  Attention all{*call, chosen, moespac_kernels(isa)->mix[call->compute], call->heads / call->kv_heads, 0};
  all.tasks_a_head = (all.group * call->tokens + kRowsATask - 1) / kRowsATask;
  Locked held;
  run(call->kv_heads * all.tasks_a_head, attend, &all);
  return 0;
}
