// Hyper-parameters of an Infini-attention model, from config.json (docs/checkpoint_format.md).
//
// Letters: L layers, D width, H query heads, Hk key/value heads, dk and dv key and value width of a
// head, F feed-forward width, V vocabulary, N tokens of a segment.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/kernels/rope.h"

namespace mneme::engine::infini {

struct Config {
  int64_t num_layers = 0;      // L
  int64_t width = 0;           // D
  int64_t heads = 0;           // H
  int64_t kv_heads = 0;        // Hk, divides H
  int64_t head_dim = 0;        // dk, even
  int64_t value_head_dim = 0;  // dv
  int64_t ffn_width = 0;       // F
  int64_t vocab_size = 0;      // V
  int64_t segment_tokens = 0;  // N
  float rms_eps = 0;
  float memory_eps = 0;              // added to the denominators of read and delta
  bool delta = false;                // memory_update is linear_delta
  bool first_segment_local = false;  // the first segment is not gated
  bool tied_embeddings = false;
  RopeLayout rope_layout = RopeLayout::kHalf;
  std::vector<double> theta;  // [dk / 2], radians per position of the segment
};

// Whether the metadata names an Infini-attention model. Looks at nothing else.
bool Matches(const Checkpoint& checkpoint);

// NOT_FOUND, INVALID_ARGUMENT or UNIMPLEMENTED name the key that is missing, unknown, of another
// type or out of range.
absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint);

}  // namespace mneme::engine::infini
