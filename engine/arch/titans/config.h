// Hyper-parameters of a Titans model, from config.json (docs/checkpoint_format.md).
//
// Letters: L layers, D width, V vocabulary, F feed-forward width, H memories per layer of width e,
// dm = H * e, b tokens per commit, K taps of the short convolutions, W visible keys, C tokens of a
// segment (equal to b), Np persistent tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/kernels/rope.h"
#include "engine/kernels/titans_memory.h"

namespace mneme::engine::titans {

enum class Variant {
  kMemory,   // "lmm": the memory alone
  kContext,  // "mac": the memory's answers are context of the attention
  kGate,     // "mag": memory and attention side by side, gated
  kLayer,    // "mal": first the memory, then attention
};

struct Config {
  Variant variant = Variant::kMemory;
  int64_t num_layers = 0;      // L
  int64_t width = 0;           // D
  int64_t vocab_size = 0;      // V
  int64_t ffn_width = 0;       // F
  int64_t memory_heads = 0;    // H
  TitansMemoryShape memory;    // of one head
  int64_t chunk_tokens = 0;    // b
  bool token_mode = false;     // read_mode: the running weights instead of the last commit's
  bool decay_to_init = false;  // T of the update is M_0; otherwise 0
  float theta_max = 0;
  float eta_max = 0;
  bool forget = true;
  float gate_floor = 0;     // kappa
  float gradient_clip = 0;  // c; 0: none
  int64_t conv_taps = 0;    // K

  // Attention; zero in lmm.
  int64_t attention_heads = 0;
  int64_t head_dim = 0;           // even
  int64_t window_tokens = 0;      // W; mag and mal
  int64_t persistent_tokens = 0;  // Np
  bool sigmoid_mix = false;       // gate_mix; mag and mac
  RopeLayout rope_layout = RopeLayout::kInterleaved;
  std::vector<double> rope_theta;  // [head_dim / 2], radians per position

  float rms_eps = 0;
  bool tied_embeddings = false;

  bool HasAttention() const { return variant != Variant::kMemory; }
  bool IsContext() const { return variant == Variant::kContext; }
  bool HasMix() const { return variant == Variant::kContext || variant == Variant::kGate; }
  int64_t memory_width() const { return memory_heads * memory.width; }  // dm
};

// Whether the metadata names a Titans model. Looks at nothing else.
bool Matches(const Checkpoint& checkpoint);

// NOT_FOUND, INVALID_ARGUMENT or UNIMPLEMENTED name the key that is missing, unknown, of another
// type or variant, or out of range.
absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint);

}  // namespace mneme::engine::titans
