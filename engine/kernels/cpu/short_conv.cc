// SIMD version. Lanes are channels; each output has one chain, over the taps.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/cpu/short_conv.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <cmath>

#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/cpu/partial_vector-inl.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/short_conv_plan.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

struct ShortConvOps {
  static void Convolve(const float* const* rows, const float* taps, int64_t K, int64_t n,
                       float* y) {
    const F32 d;
    const Vec one = hn::Set(d, 1.0f);
    ForEachVector(n, [&](size_t c, auto count) HWY_ATTR {
      Vec sum = hn::Zero(d);
      for (int64_t k = 0; k < K; ++k) {
        sum = hn::MulAdd(count.Load(taps + k * n + c), count.Load(rows[k] + c), sum);
      }
      count.Store(hn::Div(sum, hn::Add(one, Exp(d, hn::Neg(sum)))), y + c);
    });
  }

  static void Normalize(float* x, int64_t heads, int64_t width) {
    const F32 d;
    for (int64_t h = 0; h < heads; ++h, x += width) {
      Vec squares = hn::Zero(d);
      ForEachVector(width, [&](size_t i, auto count) HWY_ATTR {
        const Vec v = count.Load(x + i);
        squares = hn::MulAdd(v, v, squares);
      });
      const Vec norm = hn::Set(d, std::sqrt(hn::GetLane(hn::SumOfLanes(d, squares)) + 1e-6f));
      ForEachVector(width, [&](size_t i, auto count)
                               HWY_ATTR { count.Store(hn::Div(count.Load(x + i), norm), x + i); });
    }
  }
};

void ShortConvAll(Exec& exec, std::span<const ShortConvArgs> batch) {
  RunShortConv<ShortConvOps>(exec, batch);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::cpu {
namespace {

HWY_EXPORT(ShortConvAll);

}  // namespace

void ShortConv(Exec& exec, std::span<const ShortConvArgs> batch) {
  CurrentSimdTarget();  // before the first dispatch: it may be pinned
  HWY_DYNAMIC_DISPATCH(ShortConvAll)(exec, batch);
}

}  // namespace mneme::engine::cpu
#endif  // HWY_ONCE
