// The order of the parts of a call of infini_memory.h, shared by the backends.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/kernels/host.h"
#include "engine/kernels/infini_memory.h"

namespace mneme::engine {

// One head's memory.
struct InfiniHead {
  const float* memory;      // [dk, dv]
  const float* normalizer;  // [dk]
  int64_t dk;
  int64_t dv;
  float eps;
};

// Rows `stride` elements apart; no alignment is required.
struct InfiniRows {
  const float* data;
  int64_t stride;
};

// One key/value head of a sequence. `Ops` has, as static functions on `count` rows:
//   Retrieve(head, s, count, out, out_stride)       out[t] = s[t] M / (s[t] . z + eps)
//   Blend(memory_share, local_share, local, count, dv, mix, mix_stride)
//   SubtractFrom(v, count, dv, u, u_stride)         u[t] = v[t] - u[t]
//   Accumulate(s, u, count, dk, dv, memory, normalizer)   for t ascending
//   Commit(n, pending, total)                       total += pending, pending = 0
// `update` has room for rows * dv elements.
template <typename Ops>
void MixInfiniHead(const InfiniMixShape& shape, const InfiniMixArgs& args, int64_t kv_head,
                   float* update) {
  const int64_t dk = shape.key_dim, dv = shape.value_dim, H = shape.heads, Hk = shape.kv_heads;
  const int64_t group = H / Hk, count = args.rows;
  float* memory = args.memory + kv_head * dk * dv;
  float* normalizer = args.normalizer + kv_head * dk;
  float* pending_memory = args.pending_memory + kv_head * dk * dv;
  float* pending_normalizer = args.pending_normalizer + kv_head * dk;
  const InfiniHead head{memory, normalizer, dk, dv, shape.eps};

  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    float* mixed = args.mixed + h * dv;
    Ops::Retrieve(head, {args.sq + h * dk, H * dk}, count, mixed, H * dv);
    Ops::Blend(args.local_only ? 0.0f : shape.memory_share[h],
               args.local_only ? 1.0f : shape.local_share[h], {args.local + h * dv, H * dv}, count,
               dv, mixed, H * dv);
  }
  const InfiniRows sk{args.sk + kv_head * dk, Hk * dk};
  InfiniRows written{args.v + kv_head * dv, Hk * dv};
  if (shape.delta) {
    Ops::Retrieve(head, sk, count, update, dv);
    Ops::SubtractFrom(written, count, dv, update, dv);
    written = {update, dv};
  }
  Ops::Accumulate(sk, written, count, dk, dv, pending_memory, pending_normalizer);
  if (args.completes) {
    Ops::Commit(dk * dv, pending_memory, memory);
    Ops::Commit(dk, pending_normalizer, normalizer);
  }
}

// Every head of every sequence, on the pool.
template <typename Ops>
void MixInfini(Exec& exec, const InfiniMixShape& shape, std::span<const InfiniMixArgs> batch) {
  int64_t longest = 0;
  if (shape.delta) {
    for (const InfiniMixArgs& args : batch) longest = std::max(longest, args.rows);
  }
  const auto updates =
      Host(exec).WorkerScratch(HostDevice::kInfiniUpdates, longest * shape.value_dim);
  Host(exec).pool().Run(static_cast<int64_t>(batch.size()) * shape.kv_heads,
                        [&](int64_t task, int worker) {
                          MixInfiniHead<Ops>(shape, batch[task / shape.kv_heads],
                                             task % shape.kv_heads, updates.Of(worker));
                        });
}

}  // namespace mneme::engine
