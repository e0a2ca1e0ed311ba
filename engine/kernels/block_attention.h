// Attention of a block of queries over runs of stored keys, one softmax per query and head: blocks
// of a sliding window and the rows of a feedback memory (Hwang et al. 2024, arXiv:2404.09173).
//
// The runs of a call, one behind the other, are one list of keys. A causal call's query t of T sees
// all of it but the last T - 1 - t keys; another call's queries see all.
//   out[t, h] = sum_j softmax_j(scale * q[t, h] . k_j) v_j
//
// An output's bits depend on its query and the keys that it sees, in their order, alone: not on T,
// nor on where a run ends. Keys are visited in tiles of kAttentionTile places of the list, each
// reduced as a full tile with masked lanes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/core/dtype.h"

namespace mneme::engine {

class Exec;

// Rows of [Hk, Dk] and [Hk, Dv], contiguous.
struct KeyRun {
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  int64_t rows = 0;
};

// A ring that wraps gives two runs, memory and current block one each.
inline constexpr int kMaxKeyRuns = 4;

struct BlockAttentionArgs {
  std::array<KeyRun, kMaxKeyRuns> runs;
  DType dtype = DType::kF16;  // of every run: kF16 or kF32
  bool causal = true;         // then the runs hold at least T rows
  int64_t T = 0;
  int64_t query_heads = 0;  // H
  int64_t kv_heads = 0;     // Hk, divides H; query head h reads kv head h / (H / Hk)
  int64_t key_dim = 0;      // Dk
  int64_t value_dim = 0;    // Dv
  float scale = 0;
  const float* q = nullptr;  // [T, H, Dk], token stride q_stride
  int64_t q_stride = 0;
  float* out = nullptr;  // [T, H, Dv], token stride out_stride; overwritten
  int64_t out_stride = 0;
};

// `batch` holds one entry per sequence; all have the same head shapes. Threads are shared over
// sequences, kv heads and queries.
using BlockAttentionFn = void (*)(Exec& exec, std::span<const BlockAttentionArgs> batch);

}  // namespace mneme::engine
