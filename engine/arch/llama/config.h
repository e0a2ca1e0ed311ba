// Hyper-parameters of a Llama-family decoder, from GGUF `llama.*` keys or Hugging Face's
// config.json.
//
// Letters: L layers, D width, H query heads, Hk key/value heads, Dh head width, F feed-forward
// width, V vocabulary (rows of the embedding).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/llama/pangu_options.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/kernels/rope.h"

namespace mneme::engine::llama {

struct Config {
  std::string architecture;     // registry name, "llama" or "pangu_pi"
  int64_t num_layers = 0;       // L
  int64_t width = 0;            // D
  int64_t heads = 0;            // H
  int64_t kv_heads = 0;         // Hk, divides H
  int64_t head_dim = 0;         // Dh, even; may differ from D / H
  int64_t ffn_width = 0;        // F
  int64_t vocab_size = 0;       // V
  int64_t trained_context = 0;  // tokens
  float rms_eps = 0;
  float attention_scale = 0;  // usually 1 / sqrt(Dh)

  RopeLayout rope_layout = RopeLayout::kInterleaved;
  int64_t rotary_dim = 0;     // even, <= Dh
  std::vector<double> theta;  // [rotary_dim / 2], radians per position, every scaling applied

  // What the metadata says of them; GGUF says nothing and lets the tensors speak.
  bool requires_tied_embeddings = false;
  bool may_have_attention_bias = false;
  bool may_have_mlp_bias = false;

  PanguOptions pangu;
};

// Whether the metadata names a Llama-family decoder. Looks at nothing else.
bool Matches(const Checkpoint& checkpoint);

// INVALID_ARGUMENT names the key that is missing or out of range; UNIMPLEMENTED the key that asks
// for something this architecture does not have (experts, unknown rope scaling, per-layer shapes).
absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint);

}  // namespace mneme::engine::llama
