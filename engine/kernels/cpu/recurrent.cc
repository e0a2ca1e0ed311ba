// Layer and group norm, activations and token shift.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/cpu/recurrent.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/cpu/partial_vector-inl.h"
#include "engine/kernels/cpu/recurrent.h"
#include "engine/kernels/cpu/row_pieces.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/exec.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

// Groups [first, last), counted over all rows.
void LayerNormGroups(const LayerNormArgs& args, int64_t first, int64_t last) {
  const F32 d;
  const size_t lanes = hn::Lanes(d);
  const auto n = static_cast<size_t>(args.D / args.groups);
  for (int64_t group = first; group < last; ++group) {
    const float* x = args.x + group * n;
    float* y = args.y + group * n;
    const float* w = args.w + group % args.groups * n;
    const float* b = args.b + group % args.groups * n;
    Vec s0 = hn::Zero(d), s1 = hn::Zero(d);
    size_t i = 0;
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
      s0 = hn::Add(s0, hn::LoadU(d, x + i));
      s1 = hn::Add(s1, hn::LoadU(d, x + i + lanes));
    }
    for (; i < n; i += lanes) s0 = hn::Add(s0, LoadUpTo(d, x + i, n - i));
    const float mean = hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1))) / static_cast<float>(n);
    const Vec vmean = hn::Set(d, mean);
    s0 = s1 = hn::Zero(d);
    for (i = 0; i + 2 * lanes <= n; i += 2 * lanes) {
      const Vec c0 = hn::Sub(hn::LoadU(d, x + i), vmean);
      const Vec c1 = hn::Sub(hn::LoadU(d, x + i + lanes), vmean);
      s0 = hn::MulAdd(c0, c0, s0);
      s1 = hn::MulAdd(c1, c1, s1);
    }
    for (; i + lanes <= n; i += lanes) {
      const Vec c = hn::Sub(hn::LoadU(d, x + i), vmean);
      s0 = hn::MulAdd(c, c, s0);
    }
    float squares = hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1)));
    // Absent lanes would count as -mean.
    for (; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const Vec scale = hn::Set(d, 1.0f / std::sqrt(squares / static_cast<float>(n) + args.eps));
    ForEachVector(n, [&](size_t j, auto count) HWY_ATTR {
      const Vec c = hn::Mul(hn::Sub(count.Load(x + j), vmean), scale);
      count.Store(hn::MulAdd(c, count.Load(w + j), count.Load(b + j)), y + j);
    });
  }
}

// erfc(z) for z >= 0, within 4e-7 of its value up to z = 2 and 2e-7 absolutely: e^(-z^2) times a
// function of 1 / (1 + z / 2), a Chebyshev fit (Press et al., Numerical Recipes, section 6.2).
HWY_INLINE Vec ErfcOfPositive(F32 d, Vec z) {
  const Vec one = hn::Set(d, 1.0f);
  const Vec t = hn::Div(one, hn::MulAdd(hn::Set(d, 0.5f), z, one));
  // Pairs first, then pairs of those (Estrin): less than half the latency of a chain of nine.
  const Vec t2 = hn::Mul(t, t);
  const Vec t4 = hn::Mul(t2, t2);
  const auto pair = [&](float upper, float lower)
                        HWY_ATTR { return hn::MulAdd(hn::Set(d, upper), t, hn::Set(d, lower)); };
  const Vec p01 = pair(1.00002368f, -1.26551223f);
  const Vec p23 = pair(0.09678418f, 0.37409196f);
  const Vec p45 = pair(0.27886807f, -0.18628806f);
  const Vec p67 = pair(1.48851587f, -1.13520398f);
  const Vec p89 = pair(0.17087277f, -0.82215223f);
  Vec p = hn::MulAdd(p23, t2, p01);
  p = hn::MulAdd(hn::MulAdd(p67, t2, p45), t4, p);
  p = hn::MulAdd(p89, hn::Mul(t4, t4), p);
  return hn::Mul(t, Exp(d, hn::NegMulAdd(z, z, p)));
}

template <Activation f>
HWY_INLINE Vec ActivateVec(F32 d, Vec x) {
  const Vec one = hn::Set(d, 1.0f);
  switch (f) {
    case Activation::kSigmoid:
      return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
    case Activation::kTanh: {
      const Vec e = Exp(d, hn::Mul(hn::Set(d, 2.0f), hn::Abs(x)));
      const Vec y = hn::Sub(one, hn::Div(hn::Set(d, 2.0f), hn::Add(e, one)));
      return hn::CopySign(y, x);
    }
    case Activation::kReluSquared: {
      // The comparison is false for NaN, which stays.
      const Vec positive = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x);
      return hn::Mul(positive, positive);
    }
    case Activation::kDecay:
      return Exp(d, hn::Neg(Exp(d, x)));
    case Activation::kSilu:
      return hn::Div(x, hn::Add(one, Exp(d, hn::Neg(x))));
    case Activation::kGeluErf: {
      const Vec half_x = hn::Mul(hn::Set(d, 0.5f), x);
      const Vec tail = ErfcOfPositive(d, hn::Mul(hn::Set(d, 0.70710678f), hn::Abs(x)));
      // 1 + erf(u) = erfc(-u).
      const Vec erfc =
          hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(hn::Set(d, 2.0f), tail));
      return hn::Mul(half_x, erfc);
    }
    case Activation::kGeluTanh: {
      // (1 + tanh u) / 2 = 1 / (1 + e^(-2u)).
      const Vec cubic = hn::MulAdd(hn::Mul(hn::Set(d, 0.044715f), hn::Mul(x, x)), x, x);
      const Vec e = Exp(d, hn::Mul(hn::Set(d, -2 * 0.79788456f), cubic));
      return hn::Div(x, hn::Add(one, e));
    }
    case Activation::kRelu:
      return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x);
  }
  return x;
}

// fn(the activation as an integral constant).
template <typename Fn>
HWY_INLINE void WithActivation(Activation f, Fn fn) {
  switch (f) {
    case Activation::kSigmoid:
      return fn(std::integral_constant<Activation, Activation::kSigmoid>{});
    case Activation::kTanh:
      return fn(std::integral_constant<Activation, Activation::kTanh>{});
    case Activation::kReluSquared:
      return fn(std::integral_constant<Activation, Activation::kReluSquared>{});
    case Activation::kDecay:
      return fn(std::integral_constant<Activation, Activation::kDecay>{});
    case Activation::kSilu:
      return fn(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGeluErf:
      return fn(std::integral_constant<Activation, Activation::kGeluErf>{});
    case Activation::kGeluTanh:
      return fn(std::integral_constant<Activation, Activation::kGeluTanh>{});
    case Activation::kRelu:
      return fn(std::integral_constant<Activation, Activation::kRelu>{});
  }
}

void ActivateRange(Activation f, const float* x, size_t n, float* y) {
  WithActivation(f, [&](auto constant) HWY_ATTR {
    ForEachVector(n, [&](size_t i, auto count) HWY_ATTR {
      count.Store(ActivateVec<constant()>(F32(), count.Load(x + i)), y + i);
    });
  });
}

// One activation after the other over a block of channels: an exponential is a long chain, and a
// processor overlaps more vectors of one function than of the whole series.
void SeriesActivateRow(const SeriesActivateArgs& args, const float* x, float* y) {
  const F32 d;
  const size_t C = args.C;
  constexpr size_t kBlock = 512;
  HWY_ALIGN float sum[kBlock];
  for (size_t c = 0; c < C; c += kBlock) {
    const size_t n = std::min(kBlock, C - c);
    std::fill_n(sum, (n + 7) / 8 * 8, 0.0f);  // whole vectors
    for (size_t i = 0; i < args.series.size(); ++i) {
      const float* scale = args.scale + i * C + c;
      const float* bias = args.bias + i * C + c;
      WithActivation(args.series[i], [&](auto constant) HWY_ATTR {
        ForEachVector(n, [&](size_t j, auto count) HWY_ATTR {
          const Vec z =
              hn::MulAdd(count.Load(scale + j), count.Load(x + c + j), count.Load(bias + j));
          hn::Store(hn::Add(hn::Load(d, sum + j), ActivateVec<constant()>(d, z)), d, sum + j);
        });
      });
    }
    ForEachVector(
        n, [&](size_t j, auto count) HWY_ATTR { count.Store(hn::Load(d, sum + j), y + c + j); });
  }
}

void MulRange(const float* x, size_t n, float* y) {
  ForEachVectorUnrolled(n, [&](size_t i, auto count) HWY_ATTR {
    count.Store(hn::Mul(count.Load(y + i), count.Load(x + i)), y + i);
  });
}

void SubRow(const float* a, const float* b, size_t n, float* y) {
  ForEachVectorUnrolled(n, [&](size_t i, auto count) HWY_ATTR {
    count.Store(hn::Sub(count.Load(a + i), count.Load(b + i)), y + i);
  });
}

// delta = previous - x, and x becomes the previous.
void ShiftRow(const float* x, size_t n, float* previous, float* delta) {
  ForEachVectorUnrolled(n, [&](size_t i, auto count) HWY_ATTR {
    const Vec now = count.Load(x + i);
    count.Store(hn::Sub(count.Load(previous + i), now), delta + i);
    count.Store(now, previous + i);
  });
}

// `dynamic` may be null.
void LerpRow(const float* x, const float* delta, const float* mu, const float* dynamic, size_t n,
             float* y) {
  if (dynamic == nullptr) {
    ForEachVectorUnrolled(n, [&](size_t i, auto count) HWY_ATTR {
      count.Store(hn::MulAdd(count.Load(delta + i), count.Load(mu + i), count.Load(x + i)), y + i);
    });
    return;
  }
  ForEachVectorUnrolled(n, [&](size_t i, auto count) HWY_ATTR {
    const Vec m = hn::Add(count.Load(mu + i), count.Load(dynamic + i));
    count.Store(hn::MulAdd(count.Load(delta + i), m, count.Load(x + i)), y + i);
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::cpu {
namespace {

HWY_EXPORT(LayerNormGroups);
HWY_EXPORT(ActivateRange);
HWY_EXPORT(SeriesActivateRow);
HWY_EXPORT(MulRange);
HWY_EXPORT(SubRow);
HWY_EXPORT(ShiftRow);
HWY_EXPORT(LerpRow);

}  // namespace

void LayerNorm(Exec& exec, const LayerNormArgs& args) {
  CurrentSimdTarget();
  const auto norm = HWY_DYNAMIC_DISPATCH(LayerNormGroups);
  ForEachRowPiece(exec, args.T * args.groups, args.D / args.groups,
                  [&](int64_t first, int64_t last) { norm(args, first, last); });
}

void Activate(Exec& exec, Activation f, const float* x, int64_t n, float* y) {
  CurrentSimdTarget();
  const auto range = HWY_DYNAMIC_DISPATCH(ActivateRange);
  // An exponential costs as much as several products.
  ForEachRowPiece(exec, n, 4,
                  [&](int64_t begin, int64_t end) { range(f, x + begin, end - begin, y + begin); });
}

void SeriesActivate(Exec& exec, const SeriesActivateArgs& args) {
  CurrentSimdTarget();
  const auto row = HWY_DYNAMIC_DISPATCH(SeriesActivateRow);
  const int64_t work = args.C * static_cast<int64_t>(args.series.size()) * 4;
  ForEachRowPiece(exec, args.T, work, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) row(args, args.x + t * args.C, args.y + t * args.C);
  });
}

void Mul(Exec& exec, const float* x, int64_t n, float* y) {
  CurrentSimdTarget();
  const auto range = HWY_DYNAMIC_DISPATCH(MulRange);
  ForEachRowPiece(exec, n, 1,
                  [&](int64_t begin, int64_t end) { range(x + begin, end - begin, y + begin); });
}

void TokenShift(Exec& exec, std::span<const TokenShiftArgs> batch) {
  CurrentSimdTarget();
  const auto sub = HWY_DYNAMIC_DISPATCH(SubRow);
  const auto shift = HWY_DYNAMIC_DISPATCH(ShiftRow);
  for (const TokenShiftArgs& args : batch) {
    const int64_t C = args.C;
    if (args.T == 1) {
      shift(args.x, C, args.previous, args.delta);
      continue;
    }
    ForEachRowPiece(exec, args.T, C, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const float* before = t == 0 ? args.previous : args.x + (t - 1) * C;
        sub(before, args.x + t * C, C, args.delta + t * C);
      }
    });
    std::copy_n(args.x + (args.T - 1) * C, C, args.previous);
  }
}

void Lerp(Exec& exec, std::span<const LerpArgs> batch) {
  if (batch.empty()) return;
  CurrentSimdTarget();
  const auto row = HWY_DYNAMIC_DISPATCH(LerpRow);
  const int64_t T = batch[0].T, C = batch[0].C;
  // Row by row, so that what all blends read is read once.
  ForEachRowPiece(exec, T, C * static_cast<int64_t>(batch.size()), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (const LerpArgs& args : batch) {
        const float* dynamic =
            args.dynamic == nullptr ? nullptr : args.dynamic + t * args.dynamic_stride;
        row(args.x + t * C, args.delta + t * C, args.mu, dynamic, C, args.y + t * C);
      }
    }
  });
}

}  // namespace mneme::engine::cpu
#endif  // HWY_ONCE
