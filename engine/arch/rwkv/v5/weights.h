// Weights of RWKV-5 and the readers that fill them, one for each layout of files
// (docs/checkpoint_format.md).
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/rwkv/rwkv_weights.h"

namespace mneme::engine::rwkv5 {

// A layer's time mixing. Shares (mu) are those of the previous token. Version 5.1 has one decay and
// one bonus a head, which stand here for each of its channels.
struct TimeMix {
  Vector mu_r, mu_k, mu_v, mu_g;  // [C]
  Vector decay;                   // [C], the factor itself, in [0, 1]
  Vector bonus;                   // [C]
  Matrix r, k, v, output;         // [C, C]
  Matrix gate;                    // [C, C], or none: version 5.1 without a gate
  rwkv::Norm group_norm;
};

// Matrices point into the checkpoint's mapping, which must outlive them.
struct Weights {
  rwkv::Model model;
  std::vector<TimeMix> time_mix;  // one per layer
};

// The layout of the Hugging Face `RWKV/*` checkpoints. Failures name the key or tensor.
absl::StatusOr<Weights> LoadHf(const Checkpoint& checkpoint, Memory& memory);

}  // namespace mneme::engine::rwkv5
