// Tiled online-softmax attention. A tile of keys and values is converted to f32 once and used by
// all tokens of a block and all query heads of its kv head; lanes are keys for the scores and
// channels for the values, so every score is one chain over channels and every output one chain
// over keys, whatever the block.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "engine/kernels/attention_plan.h"
#include "engine/kernels/cpu/attention_block.h"
#include "engine/kernels/cpu/attention_tile-inl.h"
#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/cpu/stored_row-inl.h"
#include "engine/kernels/exec.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

// --- one tile ---

// Rows of `range` of the tile that begins at `first`; other rows are zero.
HWY_INLINE void LoadTile(const AttentionArgs& args, int64_t piece, int64_t kv_head, int64_t first,
                         KeyRange range, const AttentionScratch& s) {
  const int64_t width = args.head_dim;
  const int64_t element = args.ring_dtype == DType::kF16 ? 2 : 4;
  const int64_t fresh = args.position + piece;  // positions from here on are in the call
  std::memset(s.rows, 0, (range.begin - first) * s.padded * sizeof(float));
  for (int64_t j = range.begin; j < range.end; ++j) {
    float* k = s.rows + (j - first) * s.padded;
    float* v = s.values + (j - first) * s.padded;
    if (j >= fresh) {
      const int64_t at = (j - args.position) * args.kv_stride + kv_head * width;
      RoundRow(args.k + at, args.ring_dtype, width, k);
      RoundRow(args.v + at, args.ring_dtype, width, v);
    } else {
      const KeptRow row = KeptRowOf(args, j, args.kv_heads * width * element);
      const int64_t at = kv_head * width * element;
      ReadRow(row.k + at, args.ring_dtype, width, k);
      ReadRow(row.v + at, args.ring_dtype, width, v);
    }
  }
  std::memset(s.rows + (range.end - first) * s.padded, 0,
              (kTile - (range.end - first)) * s.padded * sizeof(float));
  Transpose(s.rows, s.padded, s.padded, s.keys);
}

// --- partials ---

void MergePartial(const float* from, int64_t padded, float* into) {
  if (from[kPartialSum] == 0) return;  // saw nothing
  if (into[kPartialSum] == 0) {
    std::memcpy(into, from, (kPartialValues + padded) * sizeof(float));
    return;
  }
  const F32 d;
  const float m = std::max(into[kPartialMax], from[kPartialMax]);
  const float a = ScalarExp(into[kPartialMax] - m);
  const float b = ScalarExp(from[kPartialMax] - m);
  into[kPartialSum] = a * into[kPartialSum] + b * from[kPartialSum];
  into[kPartialMax] = m;
  const Vec va = hn::Set(d, a);
  const Vec vb = hn::Set(d, b);
  for (int64_t c = 0; c < padded; c += static_cast<int64_t>(hn::Lanes(d))) {
    const Vec x = hn::Mul(va, hn::Load(d, into + kPartialValues + c));
    hn::Store(hn::MulAdd(vb, hn::Load(d, from + kPartialValues + c), x), d,
              into + kPartialValues + c);
  }
}

// One partial (see attention_plan.h) of tokens [t0, t0 + count), all query heads of kv_head.
// partials [count, G] are overwritten.
void AttendPartial(const AttentionArgs& args, int64_t piece, int64_t kv_head, int64_t t0,
                   int64_t count, int64_t partial, const AttentionScratch& s, float* partials) {
  const int64_t group = args.query_heads / args.kv_heads;
  const int64_t width = args.head_dim;
  const int64_t stride = kPartialValues + s.padded;
  for (int64_t i = 0; i < count * group; ++i) {
    std::memset(partials + i * stride, 0, stride * sizeof(float));
    partials[i * stride + kPartialMax] = kNegativeInfinity;
  }
  const int64_t p0 = args.position + t0;
  const int64_t end_tile = FirstTileOfPartial(args.sinks, partial + 1);
  for (int64_t tile = FirstTileOfPartial(args.sinks, partial); tile < end_tile; ++tile) {
    const KeyRange all = VisibleRange(args.sinks, args.window, tile, p0, p0 + count - 1);
    if (all.begin >= all.end) continue;
    const int64_t first = TileRange(args.sinks, tile).begin;
    LoadTile(args, piece, kv_head, first, all, s);
    const float* queries = tile < SinkTiles(args.sinks) ? args.q_sink : args.q;
    const auto seen = [&](int64_t i) {
      return VisibleRange(args.sinks, args.window, tile, p0 + i, p0 + i);
    };
    for (int64_t i = 0, tokens = 1; i < count; i += tokens) {
      const KeyRange range = seen(i);
      tokens = 1;
      if (range.begin >= range.end) continue;
      while (group == 1 && tokens < 3 && i + tokens < count && seen(i + tokens) == range) ++tokens;
      UpdateGroup(queries + (t0 + i) * args.q_stride + kv_head * group * width,
                  group == 1 ? args.q_stride : width, tokens * group, width, args.scale,
                  range.begin - first, range.end - first, s, partials + i * group * stride, stride);
    }
  }
}

const AttentionOps* GetAttentionOps() {
  static constexpr AttentionOps kOps = {AttendPartial, MergePartial, FinishPartial, WriteRow};
  return &kOps;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::cpu {
namespace {

HWY_EXPORT(GetAttentionOps);

}  // namespace

const AttentionOps& CurrentAttentionOps() {
  CurrentSimdTarget();
  return *HWY_DYNAMIC_DISPATCH(GetAttentionOps)();
}

}  // namespace mneme::engine::cpu
#endif  // HWY_ONCE
