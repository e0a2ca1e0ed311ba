// Hands pieces of attention to threads. A few tokens over many keys are cut by the fixed key chunks
// and merged afterwards; many tokens are cut into blocks of tokens. Both do the same arithmetic per
// query: partials in ascending order, merged in ascending order.
#include <algorithm>
#include <cstring>

#include "engine/kernels/attention_plan.h"
#include "engine/kernels/cpu/attention_block.h"
#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/host.h"

namespace mneme::engine::cpu {
namespace {

// Tokens that share a converted tile. 32 tokens make its conversion a few per cent of the work.
constexpr int64_t kBlock = 32;
// Up to this many tokens are cut by keys: their partials are few.
constexpr int64_t kMaxTokensCutByKeys = 4;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// One sequence's share of a round.
struct Share {
  int64_t first;     // first token of the piece
  int64_t count;     // its tokens; 0: nothing left
  bool by_keys;      // units are key chunks, else token blocks
  KeyRange grid;     // by_keys: grid partials [begin, end)
  int64_t units;     // per kv head
  int64_t begin;     // number of the sequence's first unit
  int64_t partials;  // by_keys: offset of its partials in the round's buffer, floats
};

int64_t PartialCount(const KeyRange& grid) { return 1 + grid.end - grid.begin; }

class Round {
 public:
  Round(Exec& exec, std::span<const AttentionArgs> batch)
      : exec_(exec),
        batch_(batch),
        ops_(CurrentAttentionOps()),
        group_(batch[0].query_heads / batch[0].kv_heads),
        kv_heads_(batch[0].kv_heads),
        padded_(RoundUp(batch[0].head_dim, 8)),
        stride_(kPartialValues + padded_) {
    worker_floats_ = RoundUp(
        3 * kAttentionTile * padded_ + 3 * kAttentionTile + 2 * kBlock * group_ * stride_, 16);
    const size_t bytes = worker_floats_ * sizeof(float) * Host(exec).pool().num_threads();
    workers_ = reinterpret_cast<float*>(Host(exec).Scratch(HostDevice::kAttentionWorkers, bytes));
    for (int worker = 0; worker < Host(exec).pool().num_threads(); ++worker) {
      // Padding columns must be zero; another head width may have left something there.
      if (padded_ != batch[0].head_dim) {
        std::memset(workers_ + worker * worker_floats_, 0,
                    3 * kAttentionTile * padded_ * sizeof(float));
      }
    }
  }

  // Piece number `round` of every sequence. False: no sequence has one.
  bool Run(int64_t round) {
    int64_t units = 0;
    int64_t floats = 0;
    const size_t plan_bytes = RoundUp(batch_.size() * sizeof(Share), 64);
    // The plan first, then the partials, in one buffer: its size is known after a dry pass.
    for (const AttentionArgs& args : batch_) {
      const Share share = Plan(args, round, units, floats);
      units += share.units * kv_heads_;
      floats += Floats(share);
    }
    if (units == 0) return false;
    std::byte* buffer =
        Host(exec_).Scratch(HostDevice::kAttention, plan_bytes + floats * sizeof(float));
    shares_ = reinterpret_cast<Share*>(buffer);
    partials_ = reinterpret_cast<float*>(buffer + plan_bytes);
    units = floats = 0;
    bool cut_by_keys = false;
    for (size_t i = 0; i < batch_.size(); ++i) {
      shares_[i] = Plan(batch_[i], round, units, floats);
      units += shares_[i].units * kv_heads_;
      floats += Floats(shares_[i]);
      cut_by_keys |= shares_[i].by_keys;
    }

    Host(exec_).pool().Run(units, [&](int64_t unit, int worker) { Attend(unit, worker); });
    const int64_t heads = static_cast<int64_t>(batch_.size()) * kv_heads_;
    if (cut_by_keys) {
      // A fork pays from about a hundred thousand merged values.
      if (floats > (1 << 15)) {
        Host(exec_).pool().Run(heads, [&](int64_t i, int) { Merge(i / kv_heads_, i % kv_heads_); });
      } else {
        for (int64_t i = 0; i < heads; ++i) Merge(i / kv_heads_, i % kv_heads_);
      }
    }
    WriteRings();
    return true;
  }

 private:
  Share Plan(const AttentionArgs& args, int64_t round, int64_t begin, int64_t partials) const {
    Share share = {};
    share.first = round * args.window;
    share.count = std::clamp<int64_t>(args.T - share.first, 0, args.window);
    share.begin = begin;
    share.partials = partials;
    if (share.count == 0) return share;
    share.by_keys = share.count <= kMaxTokensCutByKeys;
    if (share.by_keys) {
      const int64_t p = args.position + share.first;
      share.grid = GridPartials(args.sinks, args.window, p, p + share.count - 1);
      // The sinks are few: they ride along with the first chunk.
      share.units = std::max<int64_t>(1, share.grid.end - share.grid.begin);
    } else {
      share.units = (share.count + kBlock - 1) / kBlock;
    }
    return share;
  }

  int64_t Floats(const Share& share) const {
    if (share.count == 0 || !share.by_keys) return 0;
    return PartialCount(share.grid) * kv_heads_ * share.count * group_ * stride_;
  }

  float* PartialsOf(const Share& share, int64_t kv_head, int64_t index) const {
    return partials_ + share.partials +
           (kv_head * PartialCount(share.grid) + index) * share.count * group_ * stride_;
  }

  AttentionScratch Scratch(int worker) const {
    AttentionScratch s;
    s.padded = padded_;
    s.keys = workers_ + worker * worker_floats_;
    s.values = s.keys + kAttentionTile * padded_;
    s.rows = s.values + kAttentionTile * padded_;
    s.scores = s.rows + kAttentionTile * padded_;
    return s;
  }

  void Attend(int64_t unit, int worker) const {
    size_t i = 0;
    while (i + 1 < batch_.size() && unit >= shares_[i + 1].begin) ++i;
    const AttentionArgs& args = batch_[i];
    const Share& share = shares_[i];
    const int64_t kv_head = (unit - share.begin) / share.units;
    const int64_t index = (unit - share.begin) % share.units;
    const AttentionScratch scratch = Scratch(worker);
    if (share.by_keys) {
      if (index == 0) {
        ops_.attend_partial(args, share.first, kv_head, share.first, share.count, 0, scratch,
                            PartialsOf(share, kv_head, 0));
      }
      if (const int64_t partial = share.grid.begin + index; partial < share.grid.end) {
        ops_.attend_partial(args, share.first, kv_head, share.first, share.count, partial, scratch,
                            PartialsOf(share, kv_head, 1 + index));
      }
      return;
    }
    // Later tokens see more keys: hand them out first.
    const int64_t block = share.units - 1 - index;
    const int64_t t = share.first + block * kBlock;
    const int64_t count = std::min(kBlock, share.first + share.count - t);
    float* partials = scratch.scores + 3 * kAttentionTile;
    float* totals = partials + kBlock * group_ * stride_;
    std::memset(totals, 0, count * group_ * stride_ * sizeof(float));
    const int64_t p = args.position + t;
    const KeyRange grid = GridPartials(args.sinks, args.window, p, p + count - 1);
    for (int64_t partial = 0; partial < grid.end; ++partial) {
      if (partial == 0 && args.sinks == 0) continue;
      if (partial > 0 && partial < grid.begin) {
        partial = grid.begin - 1;
        continue;
      }
      ops_.attend_partial(args, share.first, kv_head, t, count, partial, scratch, partials);
      for (int64_t row = 0; row < count * group_; ++row) {
        ops_.merge_partial(partials + row * stride_, padded_, totals + row * stride_);
      }
    }
    Finish(args, kv_head, t, count, totals);
  }

  void Merge(size_t i, int64_t kv_head) const {
    const Share& share = shares_[i];
    if (share.count == 0 || !share.by_keys) return;
    float* totals = PartialsOf(share, kv_head, 0);
    for (int64_t index = 1; index < PartialCount(share.grid); ++index) {
      const float* from = PartialsOf(share, kv_head, index);
      for (int64_t row = 0; row < share.count * group_; ++row) {
        ops_.merge_partial(from + row * stride_, padded_, totals + row * stride_);
      }
    }
    Finish(batch_[i], kv_head, share.first, share.count, totals);
  }

  void Finish(const AttentionArgs& args, int64_t kv_head, int64_t t, int64_t count,
              const float* totals) const {
    for (int64_t row = 0; row < count * group_; ++row) {
      const int64_t head = kv_head * group_ + row % group_;
      ops_.finish_partial(totals + row * stride_, args.head_dim,
                          args.out + (t + row / group_) * args.out_stride + head * args.head_dim);
    }
  }

  void WriteRings() const {
    for (size_t i = 0; i < batch_.size(); ++i) {
      const AttentionArgs& args = batch_[i];
      const Share& share = shares_[i];
      const int64_t width = args.kv_heads * args.head_dim;
      const int64_t row_bytes = width * (args.ring_dtype == DType::kF16 ? 2 : 4);
      constexpr int64_t kRows = 64;
      Host(exec_).pool().Run((share.count + kRows - 1) / kRows, [&](int64_t piece, int) {
        const int64_t end = share.first + std::min(share.count, (piece + 1) * kRows);
        for (int64_t t = share.first + piece * kRows; t < end; ++t) {
          const KeptRow row = KeptRowOf(args, args.position + t, row_bytes);
          ops_.write_row(args.k + t * args.kv_stride, args.ring_dtype, width, row.k);
          ops_.write_row(args.v + t * args.kv_stride, args.ring_dtype, width, row.v);
        }
      });
    }
  }

  Exec& exec_;
  const std::span<const AttentionArgs> batch_;
  const AttentionOps& ops_;
  const int64_t group_;  // query heads per kv head
  const int64_t kv_heads_;
  const int64_t padded_;
  const int64_t stride_;  // floats of a partial
  int64_t worker_floats_;
  float* workers_;
  Share* shares_ = nullptr;
  float* partials_ = nullptr;
};

}  // namespace

void Attention(Exec& exec, std::span<const AttentionArgs> batch) {
  if (batch.empty()) return;
  Round round(exec, batch);
  for (int64_t i = 0; round.Run(i); ++i) {
  }
}

}  // namespace mneme::engine::cpu
