// Weights of RWKV-6 and the readers that fill them, one for each layout of files
// (docs/checkpoint_format.md).
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/rwkv/rwkv_weights.h"

namespace mneme::engine::rwkv6 {

// The five inputs of a layer's time mixing, in the order of its low-rank maps.
enum MixIndex { kW, kK, kV, kR, kG, kNumMixes };

// A layer's time mixing. Shares (mu) are those of the previous token.
struct TimeMix {
  Vector mu_x;                   // [C], of the input of mix_a
  Vector mu[kNumMixes];          // [C], to which the data-dependent part is added
  Matrix mix_a;                  // [5 R, C], R rows for each mix
  std::vector<Matrix> mix_b;     // kNumMixes times [C, R]
  rwkv::LowRank decay;           // bias: the decay's own value, before e^(-e^x)
  Vector bonus;                  // [C]
  Matrix r, k, v, gate, output;  // [C, C]
  rwkv::Norm group_norm;
};

// Matrices point into the checkpoint's mapping, which must outlive them, or into themselves.
struct Weights {
  rwkv::Model model;
  std::vector<TimeMix> time_mix;  // one per layer
};

// The layout of the Hugging Face `RWKV/*` checkpoints. Failures name the key or tensor.
absl::StatusOr<Weights> LoadHf(const Checkpoint& checkpoint, Memory& memory);

}  // namespace mneme::engine::rwkv6
