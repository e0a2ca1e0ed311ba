#include "engine/sampler/softmax.h"

#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/sampler/softmax.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F64 = hn::ScalableTag<double>;
using Vec = hn::Vec<F64>;

// e^x for x <= 0. Range reduction to |r| <= ln 2 / 2, then the Taylor series to r^13 / 13!, error
// below 1e-15 relative. Products and sums are apart: not every machine has fused ones, and the C
// library's exp does not promise the same bits everywhere.
HWY_INLINE Vec Exp(F64 d, Vec x) {
  const hn::RebindToUnsigned<F64> du;
  const Vec smallest = hn::Set(d, -40.0);
  const Vec clamped = hn::Max(x, smallest);
  // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
  const Vec round = hn::Set(d, 6755399441055744.0);
  const Vec shifted = hn::Add(hn::Mul(clamped, hn::Set(d, 1.4426950408889634)), round);
  const Vec k = hn::Sub(shifted, round);
  // ln 2 in two parts; the low bits of the upper one are zero, so k times it is exact.
  Vec r = hn::Sub(clamped, hn::Mul(k, hn::Set(d, 6.93147180369123816490e-01)));
  r = hn::Sub(r, hn::Mul(k, hn::Set(d, 1.90821492927058770002e-10)));
  constexpr double kInverseFactorials[] = {1.0 / 479001600.0,
                                           1.0 / 39916800.0,
                                           1.0 / 3628800.0,
                                           1.0 / 362880.0,
                                           1.0 / 40320.0,
                                           1.0 / 5040.0,
                                           1.0 / 720.0,
                                           1.0 / 120.0,
                                           1.0 / 24.0,
                                           1.0 / 6.0,
                                           0.5,
                                           1.0,
                                           1.0};
  Vec sum = hn::Set(d, 1.0 / 6227020800.0);
  for (const double coefficient : kInverseFactorials) {
    sum = hn::Add(hn::Mul(sum, r), hn::Set(d, coefficient));
  }
  const auto exponent = hn::Add(hn::BitCast(du, shifted), hn::Set(du, uint64_t{1023}));
  const Vec power = hn::BitCast(d, hn::ShiftLeft<52>(exponent));
  return hn::IfThenZeroElse(hn::Lt(x, smallest), hn::Mul(sum, power));
}

// Calls use(i, weights, count) for pieces of a vector's length from the front.
template <typename Use>
HWY_INLINE void ForEachPiece(const float* logits, size_t n, const Softmax& softmax,
                             const Use& use) {
  const F64 d;
  const hn::Rebind<float, F64> df;
  const size_t lanes = hn::Lanes(d);
  const Vec max = hn::Set(d, softmax.max);
  const Vec scale = hn::Set(d, softmax.inverse_temperature);
  const Vec min_weight = hn::Set(d, softmax.min_weight);
  HWY_ALIGN double weights[hn::MaxLanes(d)];
  const auto piece = [&](size_t i, const float* at, size_t count) {
    const Vec logit = hn::PromoteTo(d, hn::LoadU(df, at));
    const Vec weight = Exp(d, hn::Mul(hn::Sub(logit, max), scale));
    hn::Store(hn::IfThenElseZero(hn::Ge(weight, min_weight), weight), d, weights);
    use(i, weights, count);
  };
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) piece(i, logits + i, lanes);
  if (i == n) return;
  float rest[hn::MaxLanes(d)] = {};
  std::copy(logits + i, logits + n, rest);
  piece(i, rest, n - i);
}

void Weights(const float* logits, size_t n, const Softmax& softmax, double* out) {
  ForEachPiece(logits, n, softmax, [out](size_t i, const double* weights, size_t count) {
    std::copy_n(weights, count, out + i);
  });
}

// The additions wait for each other; the next weights are computed meanwhile.
double AddWeights(const float* logits, size_t n, const Softmax& softmax, double sum) {
  ForEachPiece(logits, n, softmax, [&sum](size_t, const double* weights, size_t count) {
    for (size_t j = 0; j < count; ++j) sum += weights[j];
  });
  return sum;
}

float Max(const float* logits, size_t n) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  float max = -std::numeric_limits<float>::infinity();
  size_t i = 0;
  if (n >= 4 * lanes) {
    auto a = hn::LoadU(d, logits), b = a, c = a, e = a;
    for (; i + 4 * lanes <= n; i += 4 * lanes) {
      a = hn::Max(a, hn::LoadU(d, logits + i));
      b = hn::Max(b, hn::LoadU(d, logits + i + lanes));
      c = hn::Max(c, hn::LoadU(d, logits + i + 2 * lanes));
      e = hn::Max(e, hn::LoadU(d, logits + i + 3 * lanes));
    }
    max = hn::GetLane(hn::MaxOfLanes(d, hn::Max(hn::Max(a, b), hn::Max(c, e))));
  }
  for (; i < n; ++i) max = std::max(max, logits[i]);
  return max;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine {
namespace {

HWY_EXPORT(Weights);
HWY_EXPORT(AddWeights);
HWY_EXPORT(Max);

}  // namespace

size_t ArgMax(std::span<const float> logits) {
  const float max = HWY_DYNAMIC_DISPATCH(Max)(logits.data(), logits.size());
  return std::find(logits.begin(), logits.end(), max) - logits.begin();
}

void Softmax::Weights(std::span<const float> logits, double* weights) const {
  HWY_DYNAMIC_DISPATCH(Weights)(logits.data(), logits.size(), *this, weights);
}

double Softmax::AddWeights(std::span<const float> logits, double sum) const {
  return HWY_DYNAMIC_DISPATCH(AddWeights)(logits.data(), logits.size(), *this, sum);
}

}  // namespace mneme::engine
#endif  // HWY_ONCE
