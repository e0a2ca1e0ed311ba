// The activations of Titans' memory and their derivatives on vectors. Per-target header of Highway.
#if defined(MNEME_ENGINE_KERNELS_CPU_TITANS_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MNEME_ENGINE_KERNELS_CPU_TITANS_ACTIVATION_INL_H_
#undef MNEME_ENGINE_KERNELS_CPU_TITANS_ACTIVATION_INL_H_
#else
#define MNEME_ENGINE_KERNELS_CPU_TITANS_ACTIVATION_INL_H_
#endif

#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/titans_memory.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {
namespace titans {
HWY_INLINE Vec Sigmoid(F32 d, Vec z) {
  const Vec one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(z))));
}

// Within 2e-7.
HWY_INLINE Vec Tanh(F32 d, Vec z) {
  const Vec one = hn::Set(d, 1.0f), two = hn::Set(d, 2.0f);
  const Vec e = Exp(d, hn::Mul(two, hn::Abs(z)));
  return hn::CopySign(hn::Sub(one, hn::Div(two, hn::Add(e, one))), z);
}

// The normal distribution's integral, within 1e-7: Abramowitz & Stegun 7.1.26 for erfc(|z| / sqrt
// 2), which keeps the left tail's relative precision. `gauss` = e^(-z^2 / 2).
HWY_INLINE Vec NormalIntegral(F32 d, Vec z, Vec gauss) {
  const Vec one = hn::Set(d, 1.0f);
  const Vec x = hn::Mul(hn::Abs(z), hn::Set(d, 0.70710678f));
  const Vec t = hn::Div(one, hn::MulAdd(hn::Set(d, 0.3275911f), x, one));
  Vec p = hn::Set(d, 1.061405429f);
  p = hn::MulAdd(p, t, hn::Set(d, -1.453152027f));
  p = hn::MulAdd(p, t, hn::Set(d, 1.421413741f));
  p = hn::MulAdd(p, t, hn::Set(d, -0.284496736f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.254829592f));
  const Vec left = hn::Mul(hn::Mul(hn::Set(d, 0.5f), hn::Mul(p, t)), gauss);
  return hn::IfThenElse(hn::Lt(z, hn::Zero(d)), left, hn::Sub(one, left));
}

HWY_INLINE Vec Gauss(F32 d, Vec z) { return Exp(d, hn::Mul(hn::Set(d, -0.5f), hn::Mul(z, z))); }

HWY_INLINE Vec TanhArgument(F32 d, Vec z) {
  const Vec cubic = hn::MulAdd(hn::Mul(hn::Set(d, 0.044715f), hn::Mul(z, z)), z, z);
  return hn::Mul(hn::Set(d, 0.79788456f), cubic);
}

HWY_INLINE Vec Activation(F32 d, TitansActivation f, Vec z) {
  switch (f) {
    case TitansActivation::kSilu:
      return hn::Mul(z, Sigmoid(d, z));
    case TitansActivation::kGeluTanh: {
      const Vec half = hn::Mul(hn::Set(d, 0.5f), z);
      return hn::MulAdd(half, Tanh(d, TanhArgument(d, z)), half);
    }
    case TitansActivation::kGeluErf:
      return hn::Mul(z, NormalIntegral(d, z, Gauss(d, z)));
  }
  return z;
}

HWY_INLINE Vec Derivative(F32 d, TitansActivation f, Vec z) {
  const Vec one = hn::Set(d, 1.0f), half = hn::Set(d, 0.5f);
  switch (f) {
    case TitansActivation::kSilu: {
      const Vec s = Sigmoid(d, z);
      return hn::Mul(s, hn::MulAdd(z, hn::Sub(one, s), one));
    }
    case TitansActivation::kGeluTanh: {
      // Flat beyond; the square of what is left stays finite.
      const Vec x = hn::Min(hn::Max(z, hn::Set(d, -100.0f)), hn::Set(d, 100.0f));
      const Vec t = Tanh(d, TanhArgument(d, x));
      const Vec slope =
          hn::MulAdd(hn::Set(d, 0.79788456f * 0.134145f), hn::Mul(x, x), hn::Set(d, 0.79788456f));
      const Vec bell = hn::NegMulAdd(t, t, one);
      return hn::Mul(half, hn::MulAdd(hn::Mul(x, bell), slope, hn::Add(one, t)));
    }
    case TitansActivation::kGeluErf: {
      const Vec gauss = Gauss(d, z);
      return hn::MulAdd(hn::Mul(z, hn::Set(d, 0.39894228f)), gauss, NormalIntegral(d, z, gauss));
    }
  }
  return one;
}

}  // namespace titans
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
