// Configuration and weights of RWKV-7 in the layout of the flash-linear-attention checkpoints
// (docs/checkpoint_format.md).
//
// Letters: L layers, C width, N head size, H = C / N heads, F feed-forward width, V vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/weight_reader.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/dtype.h"

namespace mneme::engine::rwkv7 {

struct Config {
  int64_t num_layers = 0;  // L
  int64_t width = 0;       // C
  int64_t heads = 0;       // H
  int64_t head_size = 0;   // N
  int64_t ffn_width = 0;   // F
  int64_t vocab_size = 0;  // V
  float norm_eps = 0;      // of layer norms; the group norm's is N * norm_eps
  int64_t max_rank = 0;    // largest of all low-rank maps
};

struct Norm {
  std::vector<float> weight;  // [C]
  std::vector<float> bias;    // [C]
};

// B f(A x) + bias, f depending on what it is for.
struct LowRank {
  OwnedMatrix a;            // [R, C]
  OwnedMatrix b;            // [C, R]
  std::vector<float> bias;  // [C] or empty
  int64_t rank() const { return a.weight.rows; }
};

struct Layer {
  Norm attention_norm, ffn_norm, group_norm;
  std::vector<float> mu_r, mu_w, mu_k, mu_v, mu_a, mu_g;  // [C], of the previous token
  Weight r, k, v, output;                                 // [C, C]
  LowRank w, a, v_mix, gate;                              // v_mix: layers above 0
  std::vector<float> k_k, k_a, r_k;                       // [C]
  std::vector<float> ffn_mu_k;                            // [C]
  Weight ffn_key;                                         // [F, C]
  Weight ffn_value;                                       // [C, F]
};

// Matrices point into the checkpoint's mapping, which must outlive them, or into themselves.
struct Weights {
  Weight embedding;  // [V, C]
  Norm embedding_norm;
  std::vector<Layer> layers;
  Norm final_norm;
  Weight head;  // [V, C]
};

// Failures name the key or tensor. Fills the size fields of `info`.
absl::StatusOr<Weights> Load(const Checkpoint& checkpoint, Config* config, ArchInfo* info);

}  // namespace mneme::engine::rwkv7
