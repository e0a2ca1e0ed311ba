// SIMD version. Lanes are channels, but keys for the softmax's sum; each output has one chain.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/cpu/titans_attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/cpu/partial_vector-inl.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/cpu/stored_row-inl.h"
#include "engine/kernels/titans_attention_plan.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {
namespace titans {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Scores of kKeys neighbouring keys.
template <int kKeys>
HWY_INLINE void Score(F32 d, const float* q, const float* k, int64_t stride, int64_t head_dim,
                      float scale, float* scores) {
  const int64_t lanes = hn::Lanes(d);
  Vec sum[kKeys];
  for (Vec& v : sum) v = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= head_dim; i += lanes) {
    const Vec query = hn::LoadU(d, q + i);
    for (int j = 0; j < kKeys; ++j) {
      sum[j] = hn::MulAdd(query, hn::LoadU(d, k + j * stride + i), sum[j]);
    }
  }
  if (i < head_dim) {
    const Vec query = LoadUpTo(d, q + i, head_dim - i);
    for (int j = 0; j < kKeys; ++j) {
      sum[j] = hn::MulAdd(query, LoadUpTo(d, k + j * stride + i, head_dim - i), sum[j]);
    }
  }
  for (int j = 0; j < kKeys; ++j) scores[j] = scale * hn::GetLane(hn::SumOfLanes(d, sum[j]));
}

// Columns [i, i + kVectors vectors) of the weighted values.
template <int kVectors>
HWY_INLINE void Values(F32 d, std::span<const TitansKeys> runs, const float* weights, int64_t i,
                       int64_t head_dim, float total, float* out) {
  const int64_t lanes = hn::Lanes(d);
  Vec sum[kVectors];
  for (Vec& v : sum) v = hn::Zero(d);
  for (const TitansKeys& run : runs) {
    const float* v = run.v + i;
    for (int64_t j = 0; j < run.count; ++j, v += run.stride) {
      const Vec weight = hn::Set(d, *weights++);
      for (int c = 0; c < kVectors; ++c) {
        const Vec value = kVectors > 1 ? hn::LoadU(d, v + c * lanes) : LoadUpTo(d, v, head_dim - i);
        sum[c] = hn::MulAdd(weight, value, sum[c]);
      }
    }
  }
  for (int c = 0; c < kVectors; ++c) {
    StoreUpTo(d, hn::Div(sum[c], hn::Set(d, total)), out + i + c * lanes, head_dim - i - c * lanes);
  }
}

void Attend(const float* q_plain, const float* q_rotated, std::span<const TitansKeys> runs,
            int64_t head_dim, float scale, float* scores, float* out) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t keys = 0;
  for (const TitansKeys& run : runs) {
    const float* q = run.rotated ? q_rotated : q_plain;
    int64_t j = 0;
    for (; j + 4 <= run.count; j += 4) {
      Score<4>(d, q, run.k + j * run.stride, run.stride, head_dim, scale, scores + keys + j);
    }
    for (; j < run.count; ++j) {
      Score<1>(d, q, run.k + j * run.stride, run.stride, head_dim, scale, scores + keys + j);
    }
    keys += run.count;
  }
  const int64_t padded = TitansScoreElements(keys);
  std::fill(scores + keys, scores + padded, kNegativeInfinity);
  Vec max = hn::Set(d, kNegativeInfinity);
  for (int64_t j = 0; j < padded; j += lanes) max = hn::Max(max, hn::LoadU(d, scores + j));
  max = hn::MaxOfLanes(d, max);
  Vec sum = hn::Zero(d);
  for (int64_t j = 0; j < padded; j += lanes) {
    const Vec p = Exp(d, hn::Sub(hn::LoadU(d, scores + j), max));
    hn::StoreU(p, d, scores + j);
    sum = hn::Add(sum, p);
  }
  const float total = hn::GetLane(hn::SumOfLanes(d, sum));
  int64_t i = 0;
  for (; i + 4 * lanes <= head_dim; i += 4 * lanes) {
    Values<4>(d, runs, scores, i, head_dim, total, out);
  }
  for (; i < head_dim; i += lanes) Values<1>(d, runs, scores, i, head_dim, total, out);
}

void Load(const std::byte* rows, DType dtype, int64_t stride, int64_t count, int64_t n,
          float* out) {
  const int64_t bytes = stride * (dtype == DType::kF16 ? 2 : 4);
  for (int64_t j = 0; j < count; ++j) ReadRow(rows + j * bytes, dtype, n, out + j * n);
}

struct AttentionOps {
  static constexpr auto Attend = titans::Attend;
  static constexpr auto Load = titans::Load;
  static void Store(const float* x, DType dtype, int64_t n, std::byte* row) {
    WriteRow(x, dtype, n, row);
  }
  static void Round(float* x, DType dtype, int64_t n) { RoundRow(x, dtype, n, x); }
};

}  // namespace titans

void TitansAttentionAll(Exec& exec, const TitansAttentionLayer& layer,
                        std::span<const TitansAttentionArgs> batch) {
  RunTitansAttention<titans::AttentionOps>(exec, layer, batch);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::cpu {
namespace {

HWY_EXPORT(TitansAttentionAll);

}  // namespace

void TitansAttention(Exec& exec, const TitansAttentionLayer& layer,
                     std::span<const TitansAttentionArgs> batch) {
  CurrentSimdTarget();  // before the first dispatch: it may be pinned
  HWY_DYNAMIC_DISPATCH(TitansAttentionAll)(exec, layer, batch);
}

}  // namespace mneme::engine::cpu
#endif  // HWY_ONCE
