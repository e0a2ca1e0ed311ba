// The weights of an Infini-attention model, used where they lie.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/decoder_block.h"
#include "engine/arch/infini/config.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine::infini {

struct Layer : DecoderLayer {
  // sigmoid(beta) and 1 - sigmoid(beta), beta of the file: shares of memory and local attention.
  Vector memory_share;  // [H]
  Vector local_share;   // [H]
};

// Matrices point into the checkpoint's mapping, which must outlive them.
struct Weights : DecoderEnds {
  std::vector<Layer> layers;
};

// INVALID_ARGUMENT or NOT_FOUND names the tensor that is missing, has another shape or is not part
// of this architecture. Fills the size fields of `info`.
absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    Memory& memory, ArchInfo* info);

}  // namespace mneme::engine::infini
