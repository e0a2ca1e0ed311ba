// Weights of RWKV-4 and the readers that fill them, one for each layout of files
// (docs/checkpoint_format.md).
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/rwkv/rwkv_weights.h"

namespace mneme::engine::rwkv4 {

// A layer's time mixing. Shares (mu) are those of the previous token.
struct TimeMix {
  Vector mu_r, mu_k, mu_v;  // [C]
  Vector decay;             // [C], what the exponent changes by per token: negative
  Vector bonus;             // [C]
  Matrix r, k, v, output;   // [C, C]
};

// Matrices point into the checkpoint's mapping, which must outlive them.
struct Weights {
  rwkv::Model model;
  std::vector<TimeMix> time_mix;  // one per layer
};

// The layout of the Hugging Face `RWKV/*` checkpoints. Failures name the key or tensor.
absl::StatusOr<Weights> LoadHf(const Checkpoint& checkpoint, Memory& memory);

}  // namespace mneme::engine::rwkv4
