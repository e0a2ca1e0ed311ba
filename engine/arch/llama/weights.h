// The weights of a Llama-family decoder under either naming scheme, used where they lie.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/llama/config.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/dtype.h"

namespace mneme::engine::llama {

// A matrix [rows, columns] and its bias, empty if it has none.
struct Linear {
  Weight weight;
  std::vector<float> bias;  // [rows] or empty
};

struct Layer {
  std::vector<float> attention_norm;  // [D]
  Linear q;                           // [H * Dh, D]
  Linear k;                           // [Hk * Dh, D]
  Linear v;                           // [Hk * Dh, D]
  Linear output;                      // [D, H * Dh]
  std::vector<float> ffn_norm;        // [D]
  Linear gate;                        // [F, D]
  Linear up;                          // [F, D]
  Linear down;                        // [D, F]
};

// Matrices point into the checkpoint's mapping, which must outlive them.
struct Weights {
  Weight embedding;  // [V, D]
  std::vector<Layer> layers;
  std::vector<float> final_norm;  // [D]
  Weight head;                    // [V, D]; the embedding itself if tied
};

// INVALID_ARGUMENT or NOT_FOUND names the tensor that is missing, has another shape or is not part
// of this architecture. Fills the size fields of `info`.
absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    ArchInfo* info);

}  // namespace mneme::engine::llama
