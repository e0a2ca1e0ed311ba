// A tile of keys is read once and used by a chunk of queries and all query heads of its kv head.
// Chunks, kv heads and sequences are spread over threads.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/cpu/block_attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <cstring>

#include "engine/kernels/block_attention.h"
#include "engine/kernels/cpu/attention_tile-inl.h"
#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/cpu/stored_row-inl.h"
#include "engine/kernels/host.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

// Places [first, first + count) of the list of keys, one kv head; other rows of keys are zero.
HWY_INLINE void LoadListTile(const BlockAttentionArgs& args, int64_t kv_head, int64_t first,
                             int64_t count, int64_t key_padded, const AttentionScratch& s) {
  const int64_t Dk = args.key_dim, Dv = args.value_dim, Hk = args.kv_heads;
  const int64_t element = args.dtype == DType::kF16 ? 2 : 4;
  int64_t run_begin = 0;  // place of the run's first row
  for (const KeyRun& run : args.runs) {
    const int64_t begin = std::max(first, run_begin);
    const int64_t end = std::min(first + count, run_begin + run.rows);
    for (int64_t j = begin; j < end; ++j) {
      const int64_t row = (j - run_begin) * Hk + kv_head;
      ReadRow(run.k + row * Dk * element, args.dtype, Dk, s.rows + (j - first) * key_padded);
      ReadRow(run.v + row * Dv * element, args.dtype, Dv, s.values + (j - first) * s.padded);
    }
    run_begin += run.rows;
  }
  std::memset(s.rows + count * key_padded, 0, (kTile - count) * key_padded * sizeof(float));
  Transpose(s.rows, key_padded, key_padded, s.keys);
}

// Queries [t0, t0 + count), all query heads of kv_head. partials [count, G] are overwritten.
void AttendBlock(const BlockAttentionArgs& args, int64_t kv_head, int64_t t0, int64_t count,
                 int64_t key_padded, const AttentionScratch& s, float* partials) {
  const int64_t group = args.query_heads / args.kv_heads;
  const int64_t Dk = args.key_dim;
  const int64_t stride = kPartialValues + s.padded;
  std::memset(partials, 0, count * group * stride * sizeof(float));
  for (int64_t i = 0; i < count * group; ++i)
    partials[i * stride + kPartialMax] = kNegativeInfinity;
  int64_t keys = 0;
  for (const KeyRun& run : args.runs) keys += run.rows;
  // How many keys query t0 + i sees.
  const auto visible = [&](int64_t i) { return args.causal ? keys - (args.T - 1 - t0 - i) : keys; };

  for (int64_t first = 0; first < visible(count - 1); first += kTile) {
    LoadListTile(args, kv_head, first, std::min(kTile, visible(count - 1) - first), key_padded, s);
    const auto seen = [&](int64_t i) { return std::min(kTile, visible(i) - first); };
    for (int64_t i = 0, tokens = 1; i < count; i += tokens) {
      const int64_t end = seen(i);
      tokens = 1;
      if (end <= 0) continue;
      while (group == 1 && tokens < 3 && i + tokens < count && seen(i + tokens) == end) ++tokens;
      UpdateGroup(args.q + (t0 + i) * args.q_stride + kv_head * group * Dk,
                  group == 1 ? args.q_stride : Dk, tokens * group, Dk, args.scale, 0, end, s,
                  partials + i * group * stride, stride);
    }
  }
  for (int64_t i = 0; i < count * group; ++i) {
    const int64_t head = kv_head * group + i % group;
    FinishPartial(partials + i * stride, args.value_dim,
                  args.out + (t0 + i / group) * args.out_stride + head * args.value_dim);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::cpu {
namespace {

HWY_EXPORT(AttendBlock);

// Queries that share a tile that was read. 32 make its reading a few per cent of the work.
constexpr int64_t kChunk = 32;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

void BlockAttention(Exec& exec, std::span<const BlockAttentionArgs> batch) {
  if (batch.empty()) return;
  CurrentSimdTarget();
  const auto attend = HWY_DYNAMIC_DISPATCH(AttendBlock);
  const int64_t Hk = batch[0].kv_heads;
  const int64_t group = batch[0].query_heads / Hk;
  const int64_t key_padded = RoundUp(batch[0].key_dim, 8);
  const int64_t value_padded = RoundUp(batch[0].value_dim, 8);
  const int64_t row_floats = kAttentionTile * (2 * key_padded + value_padded);
  const int64_t worker_floats = RoundUp(
      row_floats + 3 * kAttentionTile + kChunk * group * (kPartialValues + value_padded), 16);
  const int threads = Host(exec).pool().num_threads();
  auto* workers = reinterpret_cast<float*>(
      Host(exec).Scratch(HostDevice::kAttentionWorkers, worker_floats * sizeof(float) * threads));
  if (key_padded != batch[0].key_dim || value_padded != batch[0].value_dim) {
    // Padding columns must be zero; another call may have left something there.
    for (int worker = 0; worker < threads; ++worker) {
      std::memset(workers + worker * worker_floats, 0, row_floats * sizeof(float));
    }
  }
  int64_t longest = 0;
  for (const BlockAttentionArgs& args : batch) longest = std::max(longest, args.T);
  const int64_t chunks = (longest + kChunk - 1) / kChunk;
  const int64_t units = static_cast<int64_t>(batch.size()) * Hk;
  Host(exec).pool().Run(units * chunks, [&](int64_t task, int worker) {
    // Later queries see more keys: hand them out first.
    const int64_t t0 = (chunks - 1 - task / units) * kChunk;
    const BlockAttentionArgs& args = batch[task % units / Hk];
    if (t0 >= args.T) return;
    AttentionScratch s;
    s.padded = value_padded;
    s.keys = workers + worker * worker_floats;
    s.rows = s.keys + kAttentionTile * key_padded;
    s.values = s.rows + kAttentionTile * key_padded;
    s.scores = s.values + kAttentionTile * value_padded;
    attend(args, task % Hk, t0, std::min(kChunk, args.T - t0), key_padded, s,
           s.scores + 3 * kAttentionTile);
  });
}

}  // namespace mneme::engine::cpu
#endif  // HWY_ONCE
