// SIMD versions of the convolutions, the heads' normalisation, attention and the state's rows.
// Lanes are channels, but keys for the softmax's sum; each output has one chain.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/arch/titans/vector_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/arch/titans/kernels_cpu.h"
#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/cpu/partial_vector-inl.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/cpu/stored_row-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::titans::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace simd = mneme::engine::cpu::HWY_NAMESPACE;
using simd::F32;
using simd::LoadUpTo;
using simd::StoreUpTo;
using simd::Vec;

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

void Convolve(const float* const* rows, const float* taps, int64_t K, int64_t n, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  const Vec one = hn::Set(d, 1.0f);
  for (int64_t c = 0; c < n; c += lanes) {
    Vec sum = hn::Zero(d);
    for (int64_t k = 0; k < K; ++k) {
      sum = hn::MulAdd(LoadUpTo(d, taps + k * n + c, n - c), LoadUpTo(d, rows[k] + c, n - c), sum);
    }
    const Vec silu = hn::Div(sum, hn::Add(one, simd::Exp(d, hn::Neg(sum))));
    StoreUpTo(d, silu, y + c, n - c);
  }
}

void Normalize(float* x, int64_t heads, int64_t width) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t h = 0; h < heads; ++h, x += width) {
    Vec squares = hn::Zero(d);
    for (int64_t i = 0; i < width; i += lanes) {
      const Vec v = LoadUpTo(d, x + i, width - i);
      squares = hn::MulAdd(v, v, squares);
    }
    const Vec norm = hn::Set(d, std::sqrt(hn::GetLane(hn::SumOfLanes(d, squares)) + 1e-6f));
    for (int64_t i = 0; i < width; i += lanes) {
      StoreUpTo(d, hn::Div(LoadUpTo(d, x + i, width - i), norm), x + i, width - i);
    }
  }
}

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
HWY_INLINE void Values(F32 d, std::span<const KeyRun> runs, const float* weights, int64_t i,
                       int64_t head_dim, float total, float* out) {
  const int64_t lanes = hn::Lanes(d);
  Vec sum[kVectors];
  for (Vec& v : sum) v = hn::Zero(d);
  for (const KeyRun& run : runs) {
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

void Attend(const float* q_plain, const float* q_rotated, std::span<const KeyRun> runs,
            int64_t head_dim, float scale, float* scores, float* out) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t keys = 0;
  for (const KeyRun& run : runs) {
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
  const int64_t padded = ScoreElements(keys);
  std::fill(scores + keys, scores + padded, kNegativeInfinity);
  Vec max = hn::Set(d, kNegativeInfinity);
  for (int64_t j = 0; j < padded; j += lanes) max = hn::Max(max, hn::LoadU(d, scores + j));
  max = hn::MaxOfLanes(d, max);
  Vec sum = hn::Zero(d);
  for (int64_t j = 0; j < padded; j += lanes) {
    const Vec p = simd::Exp(d, hn::Sub(hn::LoadU(d, scores + j), max));
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
  for (int64_t j = 0; j < count; ++j) simd::ReadRow(rows + j * bytes, dtype, n, out + j * n);
}

void Store(const float* x, DType dtype, int64_t n, std::byte* row) {
  simd::WriteRow(x, dtype, n, row);
}

void Round(float* x, DType dtype, int64_t n) { simd::RoundRow(x, dtype, n, x); }

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::titans::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::titans::cpu_kernels {
namespace {

HWY_EXPORT(Convolve);
HWY_EXPORT(Normalize);
HWY_EXPORT(Attend);
HWY_EXPORT(Load);
HWY_EXPORT(Store);
HWY_EXPORT(Round);

}  // namespace

void Convolve(const float* const* rows, const float* taps, int64_t K, int64_t n, float* y) {
  cpu::CurrentSimdTarget();  // before the first dispatch: it may be pinned
  HWY_DYNAMIC_DISPATCH(Convolve)(rows, taps, K, n, y);
}

void Normalize(float* x, int64_t heads, int64_t width) {
  cpu::CurrentSimdTarget();
  HWY_DYNAMIC_DISPATCH(Normalize)(x, heads, width);
}

void Attend(const float* q_plain, const float* q_rotated, std::span<const KeyRun> runs,
            int64_t head_dim, float scale, float* scores, float* out) {
  cpu::CurrentSimdTarget();
  HWY_DYNAMIC_DISPATCH(Attend)(q_plain, q_rotated, runs, head_dim, scale, scores, out);
}

void Load(const std::byte* rows, DType dtype, int64_t stride, int64_t count, int64_t n,
          float* out) {
  cpu::CurrentSimdTarget();
  HWY_DYNAMIC_DISPATCH(Load)(rows, dtype, stride, count, n, out);
}

void Store(const float* x, DType dtype, int64_t n, std::byte* row) {
  cpu::CurrentSimdTarget();
  HWY_DYNAMIC_DISPATCH(Store)(x, dtype, n, row);
}

void Round(float* x, DType dtype, int64_t n) {
  cpu::CurrentSimdTarget();
  HWY_DYNAMIC_DISPATCH(Round)(x, dtype, n);
}

}  // namespace mneme::engine::titans::cpu_kernels
#endif  // HWY_ONCE
