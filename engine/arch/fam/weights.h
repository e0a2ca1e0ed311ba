// The weights of a TransformerFAM model, used where they lie.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/decoder_block.h"
#include "engine/arch/fam/config.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine::fam {

// Matrices point into the checkpoint's mapping, which must outlive them.
struct Weights : DecoderEnds {
  std::vector<DecoderLayer> layers;
  Vector prompt;  // [f, D], from which the initial memory is made
};

// INVALID_ARGUMENT or NOT_FOUND names the tensor that is missing, has another shape or is not part
// of this architecture. Fills the size fields of `info`.
absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    Memory& memory, ArchInfo* info);

}  // namespace mneme::engine::fam
