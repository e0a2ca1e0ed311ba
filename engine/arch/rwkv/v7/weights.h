// Weights of RWKV-7 and the readers that fill them, one for each layout of files
// (docs/checkpoint_format.md).
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/rwkv/rwkv_weights.h"

namespace mneme::engine::rwkv7 {

// A layer's time mixing. Shares (mu) are those of the previous token.
struct TimeMix {
  rwkv::Norm group_norm;
  Vector mu_r, mu_w, mu_k, mu_v, mu_a, mu_g;  // [C]
  Matrix r, k, v, output;                     // [C, C]
  rwkv::LowRank w, a, v_mix, gate;            // v_mix: layers above 0
  Vector k_k, k_a, r_k;                       // [C]
};

// Matrices point into the checkpoint's mapping, which must outlive them, or into themselves.
struct Weights {
  rwkv::Model model;
  std::vector<TimeMix> time_mix;  // one per layer
};

// The layout of the flash-linear-attention checkpoints. Failures name the key or tensor.
absl::StatusOr<Weights> LoadFla(const Checkpoint& checkpoint, Memory& memory);

}  // namespace mneme::engine::rwkv7
