// Elementwise operations, normalisation and rotation.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/cpu/vector_ops.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/cpu/recurrent.h"
#include "engine/kernels/cpu/row_pieces.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/host.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

constexpr size_t kMaxLanes = 8;

// Loads `count` < Lanes(d) elements; the other lanes are zero. The same arithmetic then runs on a
// full vector, so an element's bits do not depend on where it lies.
HWY_INLINE Vec LoadFirst(F32 d, const float* p, size_t count) {
  HWY_ALIGN float lanes[kMaxLanes] = {};
  for (size_t i = 0; i < count; ++i) lanes[i] = p[i];
  return hn::Load(d, lanes);
}

HWY_INLINE void StoreFirst(F32 d, Vec v, float* p, size_t count) {
  HWY_ALIGN float lanes[kMaxLanes];
  hn::Store(v, d, lanes);
  for (size_t i = 0; i < count; ++i) p[i] = lanes[i];
}

HWY_INLINE Vec SiluMulVec(F32 d, Vec gate, Vec up) {
  const Vec one = hn::Set(d, 1.0f);
  return hn::Mul(hn::Div(gate, hn::Add(one, Exp(d, hn::Neg(gate)))), up);
}

void SiluMulRange(const float* gate, const float* up, size_t n, float* y) {
  const F32 d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(SiluMulVec(d, hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, y + i);
  }
  if (i < n) {
    const size_t rest = n - i;
    StoreFirst(d, SiluMulVec(d, LoadFirst(d, gate + i, rest), LoadFirst(d, up + i, rest)), y + i,
               rest);
  }
}

void AddRange(const float* x, size_t n, float* y) {
  const F32 d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::Add(hn::LoadU(d, y + i), hn::LoadU(d, x + i)), d, y + i);
  }
  for (; i < n; ++i) y[i] += x[i];
}

void RmsNormRow(const float* x, const float* w, float eps, size_t D, float* y) {
  const F32 d;
  const size_t lanes = hn::Lanes(d);
  // Four sums hide the latency of the additions.
  Vec s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
  size_t i = 0;
  for (; i + 4 * lanes <= D; i += 4 * lanes) {
    const Vec a = hn::LoadU(d, x + i);
    const Vec b = hn::LoadU(d, x + i + lanes);
    const Vec c = hn::LoadU(d, x + i + 2 * lanes);
    const Vec e = hn::LoadU(d, x + i + 3 * lanes);
    s0 = hn::MulAdd(a, a, s0);
    s1 = hn::MulAdd(b, b, s1);
    s2 = hn::MulAdd(c, c, s2);
    s3 = hn::MulAdd(e, e, s3);
  }
  for (; i + lanes <= D; i += lanes) {
    const Vec a = hn::LoadU(d, x + i);
    s0 = hn::MulAdd(a, a, s0);
  }
  if (i < D) {
    const Vec a = LoadFirst(d, x + i, D - i);
    s0 = hn::MulAdd(a, a, s0);
  }
  const Vec sums = hn::Add(hn::Add(s0, s2), hn::Add(s1, s3));
  const float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(D) + eps);
  const Vec vscale = hn::Set(d, scale);
  for (i = 0; i + lanes <= D; i += lanes) {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), vscale), hn::LoadU(d, w + i)), d, y + i);
  }
  for (; i < D; ++i) y[i] = x[i] * scale * w[i];
}

void RotateHead(float* head, const float* cos, const float* sin, size_t pairs, bool half) {
  size_t j = 0;
  const F32 d;
  const size_t lanes = hn::Lanes(d);
  if (half) {
    for (; j + lanes <= pairs; j += lanes) {
      const Vec c = hn::LoadU(d, cos + j), s = hn::LoadU(d, sin + j);
      const Vec a = hn::LoadU(d, head + j), b = hn::LoadU(d, head + j + pairs);
      hn::StoreU(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), d, head + j);
      hn::StoreU(hn::Add(hn::Mul(a, s), hn::Mul(b, c)), d, head + j + pairs);
    }
  }
#if HWY_TARGET != HWY_SCALAR
  if (!half) {
    for (; j + lanes <= pairs; j += lanes) {
      const Vec c = hn::LoadU(d, cos + j), s = hn::LoadU(d, sin + j);
      Vec a, b;
      hn::LoadInterleaved2(d, head + 2 * j, a, b);
      hn::StoreInterleaved2(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)),
                            hn::Add(hn::Mul(a, s), hn::Mul(b, c)), d, head + 2 * j);
    }
  }
#endif
  for (; j < pairs; ++j) {
    float& a = head[half ? j : 2 * j];
    float& b = head[half ? j + pairs : 2 * j + 1];
    const float rotated = a * cos[j] - b * sin[j];
    b = a * sin[j] + b * cos[j];
    a = rotated;
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::cpu {
namespace {

HWY_EXPORT(SiluMulRange);
HWY_EXPORT(AddRange);
HWY_EXPORT(RmsNormRow);
HWY_EXPORT(RotateHead);

}  // namespace

void SiluMul(Exec& exec, const float* gate, const float* up, int64_t n, float* y) {
  CurrentSimdTarget();
  const auto range = HWY_DYNAMIC_DISPATCH(SiluMulRange);
  constexpr int64_t kPiece = kElementsPerPiece / 4;  // an exponential each
  Host(exec).pool().Run((n + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t i = piece * kPiece;
    range(gate + i, up + i, std::min(kPiece, n - i), y + i);
  });
}

void Add(Exec& exec, const float* x, int64_t n, float* y) {
  CurrentSimdTarget();
  const auto range = HWY_DYNAMIC_DISPATCH(AddRange);
  Host(exec).pool().Run((n + kElementsPerPiece - 1) / kElementsPerPiece, [&](int64_t piece, int) {
    const int64_t i = piece * kElementsPerPiece;
    range(x + i, std::min(kElementsPerPiece, n - i), y + i);
  });
}

void RmsNorm(Exec& exec, const float* x, const float* w, float eps, int64_t T, int64_t D,
             float* y) {
  CurrentSimdTarget();
  const auto norm = HWY_DYNAMIC_DISPATCH(RmsNormRow);
  ForEachRowPiece(exec, T, D, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) norm(x + t * D, w, eps, D, y + t * D);
  });
}

void Rope(Exec& exec, const RopeArgs& args) {
  CurrentSimdTarget();
  const auto rotate = HWY_DYNAMIC_DISPATCH(RotateHead);
  const RopeTables::Table& table =
      Host(exec).rope_tables().Get(Host(exec).pool(), args.positions, args.theta);
  const int64_t T = static_cast<int64_t>(args.positions.size());
  const int64_t pairs = args.rotary_dim / 2;
  const bool half = args.layout == RopeLayout::kHalf;
  int64_t heads = 0;
  for (const RotatedRows& rows : args.rows) heads += rows.heads;
  ForEachRowPiece(exec, T, heads * args.head_dim, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (const RotatedRows& rows : args.rows) {
        for (int64_t h = 0; h < rows.heads; ++h) {
          rotate(rows.x + t * rows.x_stride + h * args.head_dim, table.cos.data() + t * pairs,
                 table.sin.data() + t * pairs, pairs, half);
        }
      }
    }
  });
}

}  // namespace mneme::engine::cpu

namespace mneme::engine {

const Kernels& cpu_kernels() {
  static constexpr Kernels kKernels = {
      .name = "cpu",
      .matmul = cpu::MatMul,
      .embed_rows = cpu::EmbedRows,
      .rms_norm = cpu::RmsNorm,
      .rope = cpu::Rope,
      .attention = cpu::Attention,
      .block_attention = cpu::BlockAttention,
      .copy_rows = cpu::CopyRows,
      .store_rows = cpu::StoreRows,
      .finite_rows = cpu::FiniteRows,
      .silu_mul = cpu::SiluMul,
      .add = cpu::Add,
      .mul = cpu::Mul,
      .activate = cpu::Activate,
      .series_activate = cpu::SeriesActivate,
      .layer_norm = cpu::LayerNorm,
      .token_shift = cpu::TokenShift,
      .lerp = cpu::Lerp,
      .wkv4 = cpu::Wkv4,
      .wkv6 = cpu::Wkv6,
      .wkv7_prepare = cpu::Wkv7Prepare,
      .wkv7 = cpu::Wkv7,
      .wkv7_bonus = cpu::Wkv7Bonus,
      .infini_feature_map = cpu::InfiniFeatureMap,
      .infini_mix = cpu::InfiniMix,
      .short_conv = cpu::ShortConv,
      .titans_rates = cpu::TitansRates,
      .titans_memory = cpu::TitansMemory,
      .titans_attention = cpu::TitansAttention,
      .simd_target = cpu::SimdTargetName,
  };
  return kKernels;
}

std::unique_ptr<Device> cpu_device(int num_threads) {
  const Kernels& kernels = cpu_kernels();
  return std::make_unique<HostDevice>(kernels.name, kernels.simd_target, kernels, num_threads);
}

}  // namespace mneme::engine
#endif  // HWY_ONCE
