// The weights of an Infini-attention model, used where they lie.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/infini/config.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/dtype.h"

namespace mneme::engine::infini {

struct Layer {
  std::vector<float> attention_norm;  // [D]
  Weight q;                           // [H * dk, D]
  Weight k;                           // [Hk * dk, D]
  Weight v;                           // [Hk * dv, D]
  Weight output;                      // [D, H * dv]
  // sigmoid(beta) and 1 - sigmoid(beta), beta of the file: shares of memory and local attention.
  std::vector<float> memory_share;  // [H]
  std::vector<float> local_share;   // [H]
  std::vector<float> ffn_norm;      // [D]
  Weight gate;                      // [F, D]
  Weight up;                        // [F, D]
  Weight down;                      // [D, F]
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

}  // namespace mneme::engine::infini
