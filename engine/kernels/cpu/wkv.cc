// The recurrences of RWKV (wkv.h), with what leads into and out of them.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/cpu/wkv.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <cmath>

#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/cpu/partial_vector-inl.h"
#include "engine/kernels/cpu/recurrent.h"
#include "engine/kernels/cpu/row_pieces.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/host.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

HWY_INLINE Vec Sigmoid(F32 d, Vec x) {
  const Vec one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
}

// Channels [begin, end) of one sequence.
void Wkv4Channels(const Wkv4Args& args, int64_t begin, int64_t end) {
  const F32 d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t c = begin; c < end; c += lanes) {
    const size_t n = static_cast<size_t>(std::min(lanes, end - c));
    Vec a = LoadUpTo(d, args.numerator + c, n);
    Vec b = LoadUpTo(d, args.denominator + c, n);
    Vec p = LoadUpTo(d, args.exponent + c, n);
    const Vec decay = LoadUpTo(d, args.decay + c, n);
    const Vec bonus = LoadUpTo(d, args.bonus + c, n);
    for (int64_t t = 0; t < args.T; ++t) {
      const Vec k = LoadUpTo(d, args.k + t * args.C + c, n);
      const Vec v = LoadUpTo(d, args.v + t * args.C + c, n);
      const Vec now = hn::Add(bonus, k);
      Vec q = hn::Max(p, now);
      Vec old_weight = Exp(d, hn::Sub(p, q)), new_weight = Exp(d, hn::Sub(now, q));
      const Vec y = hn::Div(hn::MulAdd(old_weight, a, hn::Mul(new_weight, v)),
                            hn::MulAdd(old_weight, b, new_weight));
      StoreUpTo(d, y, args.y + t * args.C + c, n);
      const Vec faded = hn::Add(p, decay);
      q = hn::Max(faded, k);
      old_weight = Exp(d, hn::Sub(faded, q));
      new_weight = Exp(d, hn::Sub(k, q));
      a = hn::MulAdd(old_weight, a, hn::Mul(new_weight, v));
      b = hn::MulAdd(old_weight, b, new_weight);
      p = q;
    }
    StoreUpTo(d, a, args.numerator + c, n);
    StoreUpTo(d, b, args.denominator + c, n);
    StoreUpTo(d, p, args.exponent + c, n);
  }
}

// `kRows` neighbouring rows of a head share the loads of r, k and the decay; a row's arithmetic
// does not depend on kRows.
template <int kRows>
HWY_INLINE void Wkv6Rows(float* state, const float* r, const float* k, const float* v,
                         const float* decay, float now, size_t N, float* y) {
  const F32 d;
  Vec sum[kRows], value[kRows];
  for (int i = 0; i < kRows; ++i) {
    sum[i] = hn::Zero(d);
    value[i] = hn::Set(d, v[i]);
  }
  ForEachVector(N, [&](size_t j, auto count) HWY_ATTR {
    const Vec rj = count.Load(r + j), kj = count.Load(k + j), dj = count.Load(decay + j);
    for (int i = 0; i < kRows; ++i) {
      const Vec s = count.Load(state + i * N + j);
      sum[i] = hn::MulAdd(s, rj, sum[i]);
      count.Store(hn::MulAdd(value[i], kj, hn::Mul(dj, s)), state + i * N + j);
    }
  });
  for (int i = 0; i < kRows; ++i) y[i] = hn::GetLane(hn::SumOfLanes(d, sum[i])) + v[i] * now;
}

void Wkv6Head(const Wkv6Args& args, int64_t h) {
  const F32 d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t N = args.head_size, C = args.heads * N;
  for (int64_t t = 0; t < args.T; ++t) {
    const int64_t at = t * C + h * N;
    const float* decay = args.decay + t * args.decay_stride + h * N;
    Vec sum = hn::Zero(d);
    for (int64_t j = 0; j < N; j += lanes) {
      const size_t n = static_cast<size_t>(N - j);
      const Vec uk =
          hn::Mul(LoadUpTo(d, args.bonus + h * N + j, n), LoadUpTo(d, args.k + at + j, n));
      sum = hn::MulAdd(uk, LoadUpTo(d, args.r + at + j, n), sum);
    }
    const float now = hn::GetLane(hn::SumOfLanes(d, sum));
    int64_t i = 0;
    for (; i + 4 <= N; i += 4) {
      Wkv6Rows<4>(args.state + (h * N + i) * N, args.r + at, args.k + at, args.v + at + i, decay,
                  now, N, args.y + at + i);
    }
    for (; i < N; ++i) {
      Wkv6Rows<1>(args.state + (h * N + i) * N, args.r + at, args.k + at, args.v + at + i, decay,
                  now, N, args.y + at + i);
    }
  }
}

// As Wkv6Rows. `at` is the head's first element of the token, `row` the first row.
template <int kRows>
HWY_INLINE void Wkv7Rows(const Wkv7Args& args, float* state, int64_t at, int64_t row, size_t N) {
  const F32 d;
  const float* kappa = args.kappa + at;
  const float* decay = args.decay + at;
  const float* b = args.b + at;
  const float* k = args.k + at;
  const float* r = args.r + at;
  Vec s[kRows], value[kRows], sum[kRows];
  for (int i = 0; i < kRows; ++i) s[i] = hn::Zero(d);
  ForEachVector(N, [&](size_t j, auto count) HWY_ATTR {
    const Vec kappa_j = count.Load(kappa + j);
    for (int i = 0; i < kRows; ++i) {
      s[i] = hn::NegMulAdd(count.Load(state + i * N + j), kappa_j, s[i]);
    }
  });
  for (int i = 0; i < kRows; ++i) {
    s[i] = hn::SumOfLanes(d, s[i]);
    value[i] = hn::Set(d, args.v[at + row + i]);
    sum[i] = hn::Zero(d);
  }
  ForEachVector(N, [&](size_t j, auto count) HWY_ATTR {
    const Vec decay_j = count.Load(decay + j), b_j = count.Load(b + j);
    const Vec k_j = count.Load(k + j), r_j = count.Load(r + j);
    for (int i = 0; i < kRows; ++i) {
      Vec x = hn::Mul(decay_j, count.Load(state + i * N + j));
      x = hn::MulAdd(s[i], b_j, x);
      x = hn::MulAdd(value[i], k_j, x);
      count.Store(x, state + i * N + j);
      sum[i] = hn::MulAdd(x, r_j, sum[i]);
    }
  });
  for (int i = 0; i < kRows; ++i) {
    args.y[at + row + i] = hn::GetLane(hn::SumOfLanes(d, sum[i]));
  }
}

void Wkv7Head(const Wkv7Args& args, int64_t h) {
  const int64_t N = args.head_size, C = args.heads * N;
  for (int64_t t = 0; t < args.T; ++t) {
    const int64_t at = t * C + h * N;
    int64_t i = 0;
    for (; i + 4 <= N; i += 4) Wkv7Rows<4>(args, args.state + (h * N + i) * N, at, i, N);
    for (; i < N; ++i) Wkv7Rows<1>(args, args.state + (h * N + i) * N, at, i, N);
  }
}

// Heads [first, last), counted over all tokens.
void Wkv7PrepareHeads(const Wkv7PrepareArgs& args, int64_t first, int64_t last) {
  const F32 d;
  const int64_t N = args.head_size;
  const Vec one = hn::Set(d, 1.0f);
  const Vec minus_root = hn::Set(d, -0.60653066f);  // -e^(-1/2)
  for (int64_t head = first; head < last; ++head) {
    const int64_t begin = head * N, column = head % args.heads * N;
    Vec squares = hn::Zero(d);
    ForEachVector(N, [&](size_t j, auto count) HWY_ATTR {
      const Vec kappa = hn::Mul(count.Load(args.k + begin + j), count.Load(args.k_k + column + j));
      count.Store(kappa, args.kappa + begin + j);
      squares = hn::MulAdd(kappa, kappa, squares);
    });
    const float norm = std::max(std::sqrt(hn::GetLane(hn::SumOfLanes(d, squares))), 1e-12f);
    const Vec divisor = hn::Set(d, norm);
    ForEachVector(N, [&](size_t j, auto count) HWY_ATTR {
      const int64_t i = begin + static_cast<int64_t>(j);
      const Vec kappa = hn::Div(count.Load(args.kappa + i), divisor);
      const Vec a = Sigmoid(d, count.Load(args.a + i));
      const Vec scale = hn::MulAdd(hn::Sub(a, one), count.Load(args.k_a + column + j), one);
      count.Store(kappa, args.kappa + i);
      count.Store(hn::Mul(kappa, a), args.a + i);
      count.Store(hn::Mul(count.Load(args.k + i), scale), args.k + i);
      const Vec w = Sigmoid(d, count.Load(args.w + i));
      count.Store(Exp(d, hn::Mul(minus_root, w)), args.w + i);
      if (args.mix != nullptr) {
        const Vec v = count.Load(args.v + i);
        const Vec mix = Sigmoid(d, count.Load(args.mix + i));
        count.Store(hn::MulAdd(hn::Sub(count.Load(args.first + i), v), mix, v), args.v + i);
      }
    });
  }
}

// `kHeads` neighbouring heads of a token, whose sums do not wait for each other; a head's
// arithmetic does not depend on kHeads. `begin` is the first head's first element, `column` the
// same in a row.
template <int kHeads>
HWY_INLINE void Wkv7BonusBlock(const Wkv7BonusArgs& args, int64_t begin, int64_t column) {
  const F32 d;
  const int64_t N = args.head_size;
  Vec bonus[kHeads];
  for (int h = 0; h < kHeads; ++h) bonus[h] = hn::Zero(d);
  const float* r = args.r + begin;
  const float* k = args.k + begin;
  const float* r_k = args.r_k + column;
  ForEachVector(N, [&](size_t j, auto count) HWY_ATTR {
    for (int h = 0; h < kHeads; ++h) {
      const size_t i = h * N + j;
      bonus[h] =
          hn::MulAdd(hn::Mul(count.Load(r + i), count.Load(k + i)), count.Load(r_k + i), bonus[h]);
    }
  });
  for (int h = 0; h < kHeads; ++h) bonus[h] = hn::SumOfLanes(d, bonus[h]);
  for (int h = 0; h < kHeads; ++h) {
    const float* v = args.v + begin + h * N;
    const float* gate = args.gate + begin + h * N;
    float* y = args.y + begin + h * N;
    ForEachVectorUnrolled(N, [&](size_t j, auto count) HWY_ATTR {
      const Vec sum = hn::MulAdd(bonus[h], count.Load(v + j), count.Load(y + j));
      count.Store(hn::Mul(sum, count.Load(gate + j)), y + j);
    });
  }
}

// As Wkv7PrepareHeads.
void Wkv7BonusHeads(const Wkv7BonusArgs& args, int64_t first, int64_t last) {
  const int64_t N = args.head_size;
  int64_t in_row = first % args.heads;
  for (int64_t head = first; head < last;) {
    const int64_t left = std::min(last - head, args.heads - in_row);
    const int64_t take = left >= 4 ? 4 : 1;
    if (take == 4) {
      Wkv7BonusBlock<4>(args, head * N, in_row * N);
    } else {
      Wkv7BonusBlock<1>(args, head * N, in_row * N);
    }
    head += take;
    in_row += take;
    if (in_row == args.heads) in_row = 0;
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::cpu {
namespace {

HWY_EXPORT(Wkv4Channels);
HWY_EXPORT(Wkv6Head);
HWY_EXPORT(Wkv7Head);
HWY_EXPORT(Wkv7PrepareHeads);
HWY_EXPORT(Wkv7BonusHeads);

constexpr int64_t kChannelsPerPiece = 64;  // a multiple of every vector's lanes
// Less than other rows have: a head's elements take several passes.
constexpr int64_t kHeadElementsPerPiece = 2048;

}  // namespace

void Wkv4(Exec& exec, std::span<const Wkv4Args> batch) {
  if (batch.empty()) return;
  CurrentSimdTarget();
  const auto channels = HWY_DYNAMIC_DISPATCH(Wkv4Channels);
  const int64_t C = batch[0].C;
  const int64_t pieces = (C + kChannelsPerPiece - 1) / kChannelsPerPiece;
  Host(exec).pool().Run(static_cast<int64_t>(batch.size()) * pieces, [&](int64_t task, int) {
    const int64_t begin = task % pieces * kChannelsPerPiece;
    channels(batch[task / pieces], begin, std::min(C, begin + kChannelsPerPiece));
  });
}

void Wkv6(Exec& exec, std::span<const Wkv6Args> batch) {
  if (batch.empty()) return;
  CurrentSimdTarget();
  const auto head = HWY_DYNAMIC_DISPATCH(Wkv6Head);
  const int64_t heads = batch[0].heads;
  Host(exec).pool().Run(static_cast<int64_t>(batch.size()) * heads,
                        [&](int64_t task, int) { head(batch[task / heads], task % heads); });
}

void Wkv7(Exec& exec, std::span<const Wkv7Args> batch) {
  if (batch.empty()) return;
  CurrentSimdTarget();
  const auto head = HWY_DYNAMIC_DISPATCH(Wkv7Head);
  const int64_t heads = batch[0].heads;
  Host(exec).pool().Run(static_cast<int64_t>(batch.size()) * heads,
                        [&](int64_t task, int) { head(batch[task / heads], task % heads); });
}

void Wkv7Prepare(Exec& exec, const Wkv7PrepareArgs& args) {
  CurrentSimdTarget();
  const auto heads = HWY_DYNAMIC_DISPATCH(Wkv7PrepareHeads);
  ForEachRowPiece(exec, args.T * args.heads, args.head_size, kHeadElementsPerPiece,
                  [&](int64_t first, int64_t last) { heads(args, first, last); });
}

void Wkv7Bonus(Exec& exec, const Wkv7BonusArgs& args) {
  CurrentSimdTarget();
  const auto heads = HWY_DYNAMIC_DISPATCH(Wkv7BonusHeads);
  ForEachRowPiece(exec, args.T * args.heads, args.head_size, kHeadElementsPerPiece,
                  [&](int64_t first, int64_t last) { heads(args, first, last); });
}

}  // namespace mneme::engine::cpu
#endif  // HWY_ONCE
