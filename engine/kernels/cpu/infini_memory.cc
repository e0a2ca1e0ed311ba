// SIMD versions. Lanes are columns of the memory, and chains run over dk or over tokens: each
// output has one chain, whatever the number of rows in the call. Blocks of rows share loads and
// change no chain.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/cpu/infini_memory.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <type_traits>

#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/cpu/partial_vector-inl.h"
#include "engine/kernels/cpu/row_pieces.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/host.h"
#include "engine/kernels/infini_memory_plan.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

void FeatureMapRange(const float* x, int64_t n, float* y) {
  const F32 d;
  const Vec zero = hn::Zero(d);
  ForEachVector(n, [&](size_t i, auto count) HWY_ATTR {
    const Vec v = count.Load(x + i);
    count.Store(hn::Add(Exp(d, hn::Min(v, zero)), hn::Max(v, zero)), y + i);
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
    for (; j + vectors * lanes <= dv; j += vectors * lanes) block(j, vectors, Whole{});
  };
  (fit(std::integral_constant<int, kWidths>{}), ...);
  constexpr std::integral_constant<int, 1> kOne;
  fit(kOne);
  if (j < dv) block(j, kOne, Part{static_cast<size_t>(dv - j)});
}

// kRows rows by kVectors vectors of columns of s M, from column j on.
template <int kRows, int kVectors, typename Count>
HWY_INLINE void RetrieveBlock(F32 d, const InfiniHead& head, int64_t j, Count count, const float* s,
                              int64_t stride, const float* denominators, float* out,
                              int64_t out_stride) {
  const int64_t lanes = hn::Lanes(d);
  const int64_t dk = head.dk, dv = head.dv;
  const float* memory = head.memory + j;
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
HWY_INLINE void RetrieveRows(F32 d, const InfiniHead& head, const float* s, int64_t stride,
                             float* out, int64_t out_stride) {
  float denominators[kRows];
  for (int t = 0; t < kRows; ++t) {
    denominators[t] = Dot(d, s + t * stride, head.normalizer, head.dk) + head.eps;
  }
  ForEachColumnBlock<kWidths...>(head.dv, [&](int64_t j, auto vectors, auto count) HWY_ATTR {
    RetrieveBlock<kRows, vectors()>(d, head, j, count, s, stride, denominators, out, out_stride);
  });
}

void Retrieve(const InfiniHead& head, InfiniRows s, int64_t count, float* out, int64_t out_stride) {
  const F32 d;
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    RetrieveRows<4, 2>(d, head, s.data + t * s.stride, s.stride, out + t * out_stride, out_stride);
  }
  for (; t < count; ++t) {
    RetrieveRows<1, 8, 4>(d, head, s.data + t * s.stride, s.stride, out + t * out_stride,
                          out_stride);
  }
}

// Rows [i, i + kRows) of the memory, kVectors vectors of columns from j on.
template <int kRows, int kVectors, typename Count>
HWY_INLINE void AccumulateBlock(F32 d, InfiniRows s, InfiniRows u, int64_t rows, int64_t i,
                                int64_t j, Count count, int64_t dv, float* memory) {
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
HWY_INLINE void AccumulateRows(F32 d, InfiniRows s, InfiniRows u, int64_t rows, int64_t i,
                               int64_t dv, float* memory) {
  ForEachColumnBlock<2>(dv, [&](int64_t j, auto vectors, auto count) HWY_ATTR {
    AccumulateBlock<kRows, vectors()>(d, s, u, rows, i, j, count, dv, memory);
  });
}

void Accumulate(InfiniRows s, InfiniRows u, int64_t count, int64_t dk, int64_t dv, float* memory,
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

void SubtractFrom(InfiniRows v, int64_t count, int64_t dv, float* u, int64_t u_stride) {
  for (int64_t t = 0; t < count; ++t) {
    const float* from = v.data + t * v.stride;
    float* at = u + t * u_stride;
    ForEachVector(dv, [&](size_t j, auto columns) HWY_ATTR {
      columns.Store(hn::Sub(columns.Load(from + j), columns.Load(at + j)), at + j);
    });
  }
}

void Blend(float memory_share, float local_share, InfiniRows local, int64_t count, int64_t dv,
           float* mix, int64_t mix_stride) {
  const F32 d;
  const Vec of_memory = hn::Set(d, memory_share), of_local = hn::Set(d, local_share);
  for (int64_t t = 0; t < count; ++t) {
    const float* from = local.data + t * local.stride;
    float* at = mix + t * mix_stride;
    ForEachVector(dv, [&](size_t j, auto columns) HWY_ATTR {
      const Vec share = hn::Mul(of_local, columns.Load(from + j));
      columns.Store(hn::MulAdd(of_memory, columns.Load(at + j), share), at + j);
    });
  }
}

void CommitRange(int64_t n, float* pending, float* total) {
  const F32 d;
  ForEachVector(n, [&](size_t i, auto count) HWY_ATTR {
    count.Store(hn::Add(count.Load(total + i), count.Load(pending + i)), total + i);
    count.Store(hn::Zero(d), pending + i);
  });
}

struct InfiniOps {
  static constexpr auto Retrieve = HWY_NAMESPACE::Retrieve;
  static constexpr auto Blend = HWY_NAMESPACE::Blend;
  static constexpr auto SubtractFrom = HWY_NAMESPACE::SubtractFrom;
  static constexpr auto Accumulate = HWY_NAMESPACE::Accumulate;
  static constexpr auto Commit = CommitRange;
};

void InfiniMixAll(Exec& exec, const InfiniMixShape& shape, std::span<const InfiniMixArgs> batch) {
  MixInfini<InfiniOps>(exec, shape, batch);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::cpu {
namespace {

HWY_EXPORT(FeatureMapRange);
HWY_EXPORT(InfiniMixAll);

}  // namespace

void InfiniFeatureMap(Exec& exec, const float* x, int64_t n, float* y) {
  CurrentSimdTarget();  // before the first dispatch: it may be pinned
  const auto range = HWY_DYNAMIC_DISPATCH(FeatureMapRange);
  constexpr int64_t kPiece = kElementsPerPiece / 4;  // an exponential each
  Host(exec).pool().Run((n + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t i = piece * kPiece;
    range(x + i, std::min(kPiece, n - i), y + i);
  });
}

void InfiniMix(Exec& exec, const InfiniMixShape& shape, std::span<const InfiniMixArgs> batch) {
  CurrentSimdTarget();
  HWY_DYNAMIC_DISPATCH(InfiniMixAll)(exec, shape, batch);
}

}  // namespace mneme::engine::cpu
#endif  // HWY_ONCE
