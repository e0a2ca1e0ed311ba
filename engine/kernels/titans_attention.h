// Attention of Titans (Behrouz et al. 2024, arXiv:2501.00663, section 4): one softmax over
// persistent tokens and one or two streams of keys, which a sliding window (mag, mal) or the
// current segment (mac: the memory's answers, then the segment's own rows) bounds.
//   out[t] = sum_j softmax_j(scale q . k_j) v_j, persistent keys first, then stream by stream, each
//   in ascending order; persistent keys meet the query as it was before its rotation
//
// Keys and values are rounded to the state's type before use, so that a row means the same in the
// call that brings it and in later ones: how rows were cut into calls changes no bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/core/dtype.h"

namespace mneme::engine {

class Exec;

// What all sequences of a call share.
struct TitansAttentionLayer {
  int64_t heads = 0;                    // H
  int64_t head_dim = 0;                 // hd
  float scale = 0;                      // usually 1 / sqrt(hd)
  int64_t persistent_tokens = 0;        // Np
  const float* persistent_k = nullptr;  // [Np, H, hd], not rotated
  const float* persistent_v = nullptr;  // [Np, H, hd]
  // W, at least 2. A query at position p sees (p - W, p], or with `segments` what of it lies in the
  // same segment of W positions.
  int64_t window = 0;
  bool segments = false;
  DType dtype = DType::kF16;  // of the state's rows: kF16 or kF32
};

inline constexpr int kMaxTitansStreams = 2;

struct TitansKeyStream {
  // Of the state; updated. [W - 1, H, hd]: the row of position p is row p mod (W - 1), or its place
  // in its segment, whose last row nobody will ask for.
  std::byte* kept_k = nullptr;
  std::byte* kept_v = nullptr;
  float* k = nullptr;  // [T, H, hd], rotated; rounded in place
  float* v = nullptr;  // [T, H, hd]; rounded in place
};

// Rows of one sequence; with `segments`, of one segment.
struct TitansAttentionArgs {
  int64_t position = 0;  // of the first row
  int64_t rows = 0;      // T
  int num_streams = 1;
  std::array<TitansKeyStream, kMaxTitansStreams> streams;
  const float* q = nullptr;          // [T, H, hd]
  const float* q_rotated = nullptr;  // [T, H, hd]
  float* out = nullptr;              // [T, H, hd]; overwritten, distinct from the others
};

// `batch` holds one entry per sequence; states are distinct. Threads are shared over sequences and
// heads.
using TitansAttentionFn = void (*)(Exec& exec, const TitansAttentionLayer& layer,
                                   std::span<const TitansAttentionArgs> batch);

}  // namespace mneme::engine
