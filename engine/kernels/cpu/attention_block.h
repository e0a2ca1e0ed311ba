// Attention of a block of tokens on one thread: what attention_schedule.cc hands out and
// attention.cc computes for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/kernels/attention.h"

namespace mneme::engine::cpu {

// A partial softmax of one query: the largest score, the sum of weights, padding, then the weighted
// values [padded].
inline constexpr int64_t kPartialMax = 0;
inline constexpr int64_t kPartialSum = 1;
inline constexpr int64_t kPartialValues = 8;  // keeps the values aligned

// One thread's buffers, 64-byte aligned. `padded` is head_dim rounded up to 8; columns beyond
// head_dim must be zero when first used and stay zero.
struct AttentionScratch {
  int64_t padded = 0;
  float* keys = nullptr;    // [padded, kAttentionTile], transposed
  float* values = nullptr;  // [kAttentionTile, padded]
  float* rows = nullptr;    // [kAttentionTile, padded]
  float* scores = nullptr;  // [3, kAttentionTile]
};

struct AttentionOps {
  // Partial number `partial` of tokens [t0, t0 + count); older rows than token `piece` are in the
  // ring. partials [count, G, kPartialValues + padded], overwritten.
  void (*attend_partial)(const AttentionArgs& args, int64_t piece, int64_t kv_head, int64_t t0,
                         int64_t count, int64_t partial, const AttentionScratch& scratch,
                         float* partials);
  void (*merge_partial)(const float* from, int64_t padded, float* into);
  void (*finish_partial)(const float* total, int64_t width, float* out);
  // Rounds `width` f32 to the ring's type.
  void (*write_row)(const float* in, DType dtype, int64_t width, std::byte* row);
};

const AttentionOps& CurrentAttentionOps();

}  // namespace mneme::engine::cpu
