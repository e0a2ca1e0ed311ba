// e^x on vectors of f32, within 2 ulp. Per-target header of Highway.
#if defined(MNEME_ENGINE_KERNELS_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MNEME_ENGINE_KERNELS_CPU_EXP_INL_H_
#undef MNEME_ENGINE_KERNELS_CPU_EXP_INL_H_
#else
#define MNEME_ENGINE_KERNELS_CPU_EXP_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Eight lanes at most, also where 512-bit vectors exist: machines with avx2 and avx3 then give the
// same bits.
using F32 = hn::CappedTag<float, 8>;
using Vec = hn::Vec<F32>;

// x = n ln 2 + r with |r| <= ln 2 / 2, e^x = 2^n e^r, e^r by a Taylor polynomial of degree 7 (its
// remainder is below 6e-9). Exactly 0 below the smallest normal result and for -inf, inf where f32
// overflows, 1 at 0, NaN for NaN.
HWY_INLINE Vec Exp(F32 d, Vec x) {
  const hn::RebindToSigned<F32> di;
  // The second operand wins where x is NaN.
  Vec c = hn::Max(hn::Set(d, -88.0f), x);
  c = hn::Min(hn::Set(d, 89.0f), c);
  const auto n = hn::NearestInt(hn::Mul(c, hn::Set(d, 1.44269504088896341f)));
  const Vec nf = hn::ConvertTo(d, n);
  // ln 2 in two parts; n times the upper one is exact.
  Vec r = hn::NegMulAdd(nf, hn::Set(d, 0.693359375f), c);
  r = hn::NegMulAdd(nf, hn::Set(d, -2.12194440e-4f), r);
  Vec p = hn::Set(d, 1.98412698412698e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.38888888888889e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.33333333333333e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.16666666666667e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.66666666666667e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  const Vec r2 = hn::Mul(r, r);
  p = hn::MulAdd(p, r2, r);
  p = hn::Add(p, hn::Set(d, 1.0f));
  // 2^n in two steps, so that n = 128 overflows to infinity and not into the sign.
  const Vec power = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 126))));
  const Vec y = hn::Mul(hn::Mul(p, hn::Set(d, 2.0f)), power);
  const Vec e = hn::IfThenElse(hn::Lt(x, hn::Set(d, -87.33654f)), hn::Zero(d), y);
#if HWY_TARGET == HWY_SCALAR
  return hn::IfThenElse(hn::IsNaN(x), x, e);  // its Max drops a NaN on either side
#else
  return e;
#endif
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
