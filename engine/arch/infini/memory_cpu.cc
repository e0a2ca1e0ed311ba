// SIMD versions. Lanes are columns of the memory (chains run over dk or over tokens), channels for
// a score's dot product, keys for the softmax's sum: each output has one chain, whatever the number
// of rows in the call. Blocks of rows share loads and change no chain.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/arch/infini/memory_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <limits>
#include <type_traits>

#include "engine/arch/infini/memory_kernels.h"
#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/cpu/partial_vector-inl.h"
#include "engine/kernels/cpu/simd_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::infini::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace simd = mneme::engine::cpu::HWY_NAMESPACE;
using simd::F32;
using simd::Vec;

using simd::ForEachVector;
using simd::LoadUpTo;
using simd::StoreUpTo;

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

void FeatureMap(const float* x, int64_t n, float* y) {
  const F32 d;
  const Vec zero = hn::Zero(d);
  ForEachVector(n, [&](size_t i, auto count) HWY_ATTR {
    const Vec v = count.Load(x + i);
    count.Store(hn::Add(simd::Exp(d, hn::Min(v, zero)), hn::Max(v, zero)), y + i);
  });
}

HWY_INLINE float Dot(F32 d, const float* a, const float* b, int64_t n) {
  Vec sum = hn::Zero(d);
  ForEachVector(n, [&](size_t i, auto count)
                       HWY_ATTR { sum = hn::MulAdd(count.Load(a + i), count.Load(b + i), sum); });
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// Calls block(j, vectors, whole or part) for blocks of neighbouring columns that cover [0, dv):
// each of the widths in turn, as integral constants, for as long as it fits; then single vectors.
template <int... kWidths, typename Block>
HWY_INLINE void ForEachColumnBlock(int64_t dv, Block block) {
  const int64_t lanes = hn::Lanes(F32());
  int64_t j = 0;
  const auto fit = [&](auto vectors) HWY_ATTR {
    for (; j + vectors * lanes <= dv; j += vectors * lanes) block(j, vectors, simd::Whole{});
  };
  (fit(std::integral_constant<int, kWidths>{}), ...);
  constexpr std::integral_constant<int, 1> kOne;
  fit(kOne);
  if (j < dv) block(j, kOne, simd::Part{static_cast<size_t>(dv - j)});
}

// kRows rows by kVectors vectors of columns of s M, from column j on.
template <int kRows, int kVectors, typename Count>
HWY_INLINE void RetrieveBlock(F32 d, const MemoryView& view, int64_t j, Count count, const float* s,
                              int64_t stride, const float* denominators, float* out,
                              int64_t out_stride) {
  const int64_t lanes = hn::Lanes(d);
  const int64_t dk = view.dk, dv = view.dv;
  const float* memory = view.memory + j;
  Vec sum[kRows][kVectors];
  for (auto& row : sum) {
    for (Vec& v : row) v = hn::Zero(d);
  }
  for (int64_t i = 0; i < dk; ++i, memory += dv) {
    Vec m[kVectors];
    for (int c = 0; c < kVectors; ++c) m[c] = count.Load(memory + c * lanes);
    for (int t = 0; t < kRows; ++t) {
      const Vec factor = hn::Set(d, s[t * stride + i]);
      for (int c = 0; c < kVectors; ++c) sum[t][c] = hn::MulAdd(factor, m[c], sum[t][c]);
    }
  }
  for (int t = 0; t < kRows; ++t) {
    for (int c = 0; c < kVectors; ++c) {
      count.Store(hn::Div(sum[t][c], hn::Set(d, denominators[t])),
                  out + t * out_stride + j + c * lanes);
    }
  }
}

// One row has to hide the latency of its chains by more columns at a time than four rows do.
template <int kRows, int... kWidths>
HWY_INLINE void RetrieveRows(F32 d, const MemoryView& view, const float* s, int64_t stride,
                             float* out, int64_t out_stride) {
  float denominators[kRows];
  for (int t = 0; t < kRows; ++t) {
    denominators[t] = Dot(d, s + t * stride, view.normalizer, view.dk) + view.eps;
  }
  ForEachColumnBlock<kWidths...>(view.dv, [&](int64_t j, auto vectors, auto count) HWY_ATTR {
    RetrieveBlock<kRows, vectors()>(d, view, j, count, s, stride, denominators, out, out_stride);
  });
}

void Retrieve(const MemoryView& view, Rows s, int64_t count, float* out, int64_t out_stride) {
  const F32 d;
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    RetrieveRows<4, 2>(d, view, s.data + t * s.stride, s.stride, out + t * out_stride, out_stride);
  }
  for (; t < count; ++t) {
    RetrieveRows<1, 8, 4>(d, view, s.data + t * s.stride, s.stride, out + t * out_stride,
                          out_stride);
  }
}

// Rows [i, i + kRows) of the memory, kVectors vectors of columns from j on.
template <int kRows, int kVectors, typename Count>
HWY_INLINE void AccumulateBlock(F32 d, Rows s, Rows u, int64_t rows, int64_t i, int64_t j,
                                Count count, int64_t dv, float* memory) {
  const int64_t lanes = hn::Lanes(d);
  Vec sum[kRows][kVectors];
  for (int a = 0; a < kRows; ++a) {
    for (int c = 0; c < kVectors; ++c) {
      sum[a][c] = count.Load(memory + (i + a) * dv + j + c * lanes);
    }
  }
  for (int64_t t = 0; t < rows; ++t) {
    Vec row[kVectors];
    for (int c = 0; c < kVectors; ++c) row[c] = count.Load(u.data + t * u.stride + j + c * lanes);
    for (int a = 0; a < kRows; ++a) {
      const Vec factor = hn::Set(d, s.data[t * s.stride + i + a]);
      for (int c = 0; c < kVectors; ++c) sum[a][c] = hn::MulAdd(factor, row[c], sum[a][c]);
    }
  }
  for (int a = 0; a < kRows; ++a) {
    for (int c = 0; c < kVectors; ++c) {
      count.Store(sum[a][c], memory + (i + a) * dv + j + c * lanes);
    }
  }
}

template <int kRows>
HWY_INLINE void AccumulateRows(F32 d, Rows s, Rows u, int64_t rows, int64_t i, int64_t dv,
                               float* memory) {
  ForEachColumnBlock<2>(dv, [&](int64_t j, auto vectors, auto count) HWY_ATTR {
    AccumulateBlock<kRows, vectors()>(d, s, u, rows, i, j, count, dv, memory);
  });
}

void Accumulate(Rows s, Rows u, int64_t count, int64_t dk, int64_t dv, float* memory,
                float* normalizer) {
  const F32 d;
  ForEachVector(dk, [&](size_t i, auto channels) HWY_ATTR {
    Vec sum = channels.Load(normalizer + i);
    for (int64_t t = 0; t < count; ++t) {
      sum = hn::Add(sum, channels.Load(s.data + t * s.stride + i));
    }
    channels.Store(sum, normalizer + i);
  });
  int64_t i = 0;
  for (; i + 4 <= dk; i += 4) AccumulateRows<4>(d, s, u, count, i, dv, memory);
  for (; i < dk; ++i) AccumulateRows<1>(d, s, u, count, i, dv, memory);
}

void SubtractFrom(Rows v, int64_t count, int64_t dv, float* u, int64_t u_stride) {
  for (int64_t t = 0; t < count; ++t) {
    const float* from = v.data + t * v.stride;
    float* at = u + t * u_stride;
    ForEachVector(dv, [&](size_t j, auto columns) HWY_ATTR {
      columns.Store(hn::Sub(columns.Load(from + j), columns.Load(at + j)), at + j);
    });
  }
}

// Scores of kQueries queries with the keys [begin, end), each dot product as Dot() forms it.
template <int kQueries, int kKeys>
HWY_INLINE void ScoreBlock(F32 d, const LocalArgs& args, const float* q, int64_t key, float* scores,
                           int64_t score_stride) {
  const int64_t lanes = hn::Lanes(d);
  const float* k = args.k.data + key * args.k.stride;
  Vec sum[kQueries][kKeys];
  for (auto& row : sum) {
    for (Vec& v : row) v = hn::Zero(d);
  }
  for (int64_t i = 0; i < args.dk; i += lanes) {
    Vec query[kQueries];
    for (int a = 0; a < kQueries; ++a) {
      query[a] = LoadUpTo(d, q + a * args.q.stride + i, args.dk - i);
    }
    for (int b = 0; b < kKeys; ++b) {
      const Vec row = LoadUpTo(d, k + b * args.k.stride + i, args.dk - i);
      for (int a = 0; a < kQueries; ++a) sum[a][b] = hn::MulAdd(query[a], row, sum[a][b]);
    }
  }
  for (int a = 0; a < kQueries; ++a) {
    for (int b = 0; b < kKeys; ++b) {
      scores[a * score_stride + key + b] = args.scale * hn::GetLane(hn::SumOfLanes(d, sum[a][b]));
    }
  }
}

template <int kQueries>
HWY_INLINE void ScoreKeys(F32 d, const LocalArgs& args, const float* q, int64_t begin, int64_t end,
                          float* scores, int64_t score_stride) {
  int64_t j = begin;
  for (; j + 4 <= end; j += 4) ScoreBlock<kQueries, 4>(d, args, q, j, scores, score_stride);
  for (; j < end; ++j) ScoreBlock<kQueries, 1>(d, args, q, j, scores, score_stride);
}

// Scores become exp(score - max), padded with zeros to whole groups of eight; returns their sum.
HWY_INLINE float Softmax(F32 d, float* scores, int64_t keys) {
  const int64_t lanes = hn::Lanes(d);
  const int64_t padded = (keys + 7) / 8 * 8;
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
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// Weighted values of kQueries queries, of which query a sees keys [0, keys + a); columns from j on.
template <int kQueries, int kVectors>
HWY_INLINE void ValueBlock(F32 d, const LocalArgs& args, const float* scores, int64_t score_stride,
                           const float* totals, int64_t keys, int64_t j, float* mix) {
  const int64_t lanes = hn::Lanes(d);
  const int64_t rest = args.dv - j;
  Vec sum[kQueries][kVectors];
  for (auto& row : sum) {
    for (Vec& v : row) v = hn::Zero(d);
  }
  for (int64_t key = 0; key < keys; ++key) {
    Vec value[kVectors];
    for (int c = 0; c < kVectors; ++c) {
      value[c] = LoadUpTo(d, args.v.data + key * args.v.stride + j + c * lanes, rest - c * lanes);
    }
    for (int a = 0; a < kQueries; ++a) {
      const Vec p = hn::Set(d, scores[a * score_stride + key]);
      for (int c = 0; c < kVectors; ++c) sum[a][c] = hn::MulAdd(p, value[c], sum[a][c]);
    }
  }
  for (int a = 0; a < kQueries; ++a) {
    for (int64_t key = keys; key < keys + a; ++key) {
      const Vec p = hn::Set(d, scores[a * score_stride + key]);
      for (int c = 0; c < kVectors; ++c) {
        sum[a][c] = hn::MulAdd(
            p, LoadUpTo(d, args.v.data + key * args.v.stride + j + c * lanes, rest - c * lanes),
            sum[a][c]);
      }
    }
    const Vec total = hn::Set(d, totals[a]);
    const Vec memory_share = hn::Set(d, args.memory_share);
    const Vec local_share = hn::Set(d, args.local_share);
    for (int c = 0; c < kVectors; ++c) {
      float* out = mix + a * args.mix_stride + j + c * lanes;
      const Vec local = hn::Mul(local_share, hn::Div(sum[a][c], total));
      StoreUpTo(d, hn::MulAdd(memory_share, LoadUpTo(d, out, rest - c * lanes), local), out,
                rest - c * lanes);
    }
  }
}

// Queries [t, t + kQueries) of the call.
template <int kQueries, int kWide>
HWY_INLINE void AttendQueries(F32 d, const LocalArgs& args, int64_t t) {
  const int64_t lanes = hn::Lanes(d);
  const int64_t stride = ScoreElements(args.first + args.count) / kQueryBlock;
  const int64_t keys = args.first + t + 1;  // that every query of the block sees
  const float* q = args.q.data + t * args.q.stride;
  ScoreKeys<kQueries>(d, args, q, 0, keys, args.scores, stride);
  float totals[kQueries];
  for (int a = 0; a < kQueries; ++a) {
    float* scores = args.scores + a * stride;
    ScoreKeys<1>(d, args, q + a * args.q.stride, keys, keys + a, scores, stride);
    totals[a] = Softmax(d, scores, keys + a);
  }
  float* mix = args.mix + t * args.mix_stride;
  int64_t j = 0;
  for (; j + kWide * lanes <= args.dv; j += kWide * lanes) {
    ValueBlock<kQueries, kWide>(d, args, args.scores, stride, totals, keys, j, mix);
  }
  for (; j < args.dv; j += lanes) {
    ValueBlock<kQueries, 1>(d, args, args.scores, stride, totals, keys, j, mix);
  }
}

void LocalAttention(const LocalArgs& args) {
  const F32 d;
  int64_t t = 0;
  for (; t + kQueryBlock <= args.count; t += kQueryBlock) AttendQueries<kQueryBlock, 2>(d, args, t);
  for (; t < args.count; ++t) AttendQueries<1, 4>(d, args, t);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::infini::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::infini {
namespace {

HWY_EXPORT(FeatureMap);
HWY_EXPORT(Retrieve);
HWY_EXPORT(Accumulate);
HWY_EXPORT(SubtractFrom);
HWY_EXPORT(LocalAttention);

}  // namespace

const MemoryKernels& CpuMemoryKernels() {
  static constexpr MemoryKernels kKernels = {
      .backend = "cpu",
      .feature_map =
          [](const float* x, int64_t n, float* y) {
            cpu::CurrentSimdTarget();  // before the first dispatch: it may be pinned
            HWY_DYNAMIC_DISPATCH(FeatureMap)(x, n, y);
          },
      .retrieve =
          [](const MemoryView& view, Rows s, int64_t count, float* out, int64_t out_stride) {
            cpu::CurrentSimdTarget();
            HWY_DYNAMIC_DISPATCH(Retrieve)(view, s, count, out, out_stride);
          },
      .accumulate =
          [](Rows s, Rows u, int64_t count, int64_t dk, int64_t dv, float* memory,
             float* normalizer) {
            cpu::CurrentSimdTarget();
            HWY_DYNAMIC_DISPATCH(Accumulate)(s, u, count, dk, dv, memory, normalizer);
          },
      .subtract_from =
          [](Rows v, int64_t count, int64_t dv, float* u, int64_t u_stride) {
            cpu::CurrentSimdTarget();
            HWY_DYNAMIC_DISPATCH(SubtractFrom)(v, count, dv, u, u_stride);
          },
      .local_attention =
          [](const LocalArgs& args) {
            cpu::CurrentSimdTarget();
            HWY_DYNAMIC_DISPATCH(LocalAttention)(args);
          }};
  return kKernels;
}

}  // namespace mneme::engine::infini
#endif  // HWY_ONCE
