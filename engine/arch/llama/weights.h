// The weights of a Llama-family decoder under either naming scheme, used where they lie.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/decoder_block.h"
#include "engine/arch/llama/config.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine::llama {

// An augmented shortcut of PanGu-pi: x += up act(down z).
struct Shortcut {
  Linear down;  // [D / r, D]
  Linear up;    // [D, D / r]
};

struct Layer : DecoderLayer {
  // The series activation of PanGu-pi: one of the two, or neither.
  Vector series_scale;        // [n, F], with
  Vector series_bias;         // [n, F]
  std::vector<Linear> gates;  // n of [F, D], instead of `gate`
  std::vector<Shortcut> shortcuts;
};

// Matrices point into the checkpoint's mapping, which must outlive them.
struct Weights : DecoderEnds {
  std::vector<Layer> layers;
};

// INVALID_ARGUMENT or NOT_FOUND names the tensor that is missing, has another shape or is not part
// of this architecture. Fills the size fields of `info`.
absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    Memory& memory, ArchInfo* info);

}  // namespace mneme::engine::llama
