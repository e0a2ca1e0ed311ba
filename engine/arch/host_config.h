// Hyper-parameters of the host block, which Infini-attention and TransformerFAM put their memory
// into (docs/checkpoint_format.md, "Our own architectures").
//
// Letters: L layers, D width, H query heads, Hk key/value heads, dk width of a head, F feed-forward
// width, V vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/kernels/rope.h"

namespace mneme::engine {

struct HostConfig {
  int64_t num_layers = 0;  // L
  int64_t width = 0;       // D
  int64_t heads = 0;       // H
  int64_t kv_heads = 0;    // Hk, divides H
  int64_t head_dim = 0;    // dk, even
  int64_t ffn_width = 0;   // F
  int64_t vocab_size = 0;  // V
  float rms_eps = 0;
  bool tied_embeddings = false;
  RopeLayout rope_layout = RopeLayout::kHalf;
  std::vector<double> theta;  // [dk / 2], radians per position
};

// Reads the host block's keys; `own_keys` are those of the architecture that it reads itself.
// NOT_FOUND, INVALID_ARGUMENT or UNIMPLEMENTED name the key that is missing, unknown, of another
// type or out of range.
absl::StatusOr<HostConfig> ParseHostConfig(const Checkpoint& checkpoint,
                                           std::string_view architecture,
                                           std::span<const std::string_view> own_keys);

}  // namespace mneme::engine
