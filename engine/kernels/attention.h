// Causal attention of new tokens over sinks, a sliding window ring and themselves, with grouped
// query heads; tiled online softmax (arXiv:2205.14135, arXiv:2309.17453).
//
// Visible to the query at absolute position p:
//   sinks   j < S, j <= p            recents  j >= S, p - R < j <= p
// Scores: scale * q_abs(p) . k(j) for recents, scale * q_sink(p) . k(j) for sinks, where every key
// is stored rotated at its absolute position. q_sink is the query rotated at p if p < S + R, else
// at the index the cache order gives it, S + (p - max(S, p - R + 1)) (decoders.md A3).
//
// Bits do not depend on how tokens were cut into calls: keys are visited sinks first, then in tiles
// [S + i*kAttentionTile, S + (i+1)*kAttentionTile) of absolute positions, ascending, each reduced
// as a full tile with masked lanes. K and V rows of this call are rounded to the ring's type before
// use. The sinks, and then every kAttentionChunk positions S + i*kAttentionChunk ..., start an
// online softmax of their own; these partials are merged in ascending order. The chunks let one
// long sequence use several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/core/dtype.h"
#include "engine/core/rows.h"

namespace mneme::engine {

class Exec;

inline constexpr int64_t kAttentionTile = 64;  // keys; 64 keys of width 64 in f32 are 16 KiB of L1
inline constexpr int64_t kAttentionChunk = 512;  // keys; a multiple of the tile
static_assert(kPageTokens % kAttentionTile == 0, "a tile lies in one page");

struct AttentionArgs {
  // Ring of one layer: rows of [Hk, Dh], S sink rows then R ring rows. Row of position j is j for j
  // < S, else S + (j - S) mod R. dtype kF16 or kF32. Updated: rows of the new tokens are written.
  std::byte* k_ring = nullptr;
  std::byte* v_ring = nullptr;
  // Or, for attention to everything, pages of kPageTokens rows in the order of positions, keys
  // k_in_page and values v_in_page bytes behind each page's beginning. Then S is 0 and R above
  // every position; pages for the new tokens are there.
  std::byte* const* pages = nullptr;
  int64_t k_in_page = 0;
  int64_t v_in_page = 0;
  DType ring_dtype = DType::kF16;  // of either
  int64_t sinks = 0;               // S >= 0
  int64_t window = 0;              // R >= 1

  int64_t position = 0;  // absolute position of the first new token; earlier ones are in the ring
  int64_t T = 0;         // new tokens; may exceed R
  int64_t query_heads = 0;
  int64_t kv_heads =
      0;  // divides query_heads; query head h reads kv head h / (query_heads / kv_heads)
  int64_t head_dim = 0;  // Dh
  float scale = 0;       // usually 1/sqrt(Dh)

  const float* q = nullptr;  // [T, H, Dh] rotated at the absolute position, token stride q_stride
  const float* q_sink = nullptr;  // [T, H, Dh], token stride q_stride; may equal q while p < S + R
  int64_t q_stride = 0;
  const float* k = nullptr;  // [T, Hk, Dh] rotated, token stride kv_stride
  const float* v = nullptr;  // [T, Hk, Dh], token stride kv_stride
  int64_t kv_stride = 0;
  float* out = nullptr;  // [T, H, Dh], token stride out_stride; overwritten
  int64_t out_stride = 0;
};

// `batch` holds one entry per sequence; all have the same head shapes. Sequences do not influence
// each other. Threads are shared over sequences and heads.
using AttentionFn = void (*)(Exec& exec, std::span<const AttentionArgs> batch);

}  // namespace mneme::engine
