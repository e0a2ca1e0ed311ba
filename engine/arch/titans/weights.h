// The weights of a Titans model: matrices where they lie, the rest as f32.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/decoder_block.h"
#include "engine/arch/titans/config.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/dtype.h"

namespace mneme::engine::titans {

// What turns the heads' answers into a row: o_proj(rms(y; norm) * silu(gate x)).
struct MemoryOutput {
  Vector norm;    // [e]
  Matrix gate;    // [dm, D]
  Matrix output;  // [D, dm]
};

struct MemoryWeights {
  Matrix q, k, v;                 // [dm, D]
  Vector q_conv, k_conv, v_conv;  // [K, dm]; the last tap meets the current token
  Matrix rates;                   // [3 H, D]
  Vector rates_bias;              // [3 H]
  std::vector<Vector> init;       // M_0 [depth], each [H, in, out]
  Vector gain;                    // [H, e], or none: without a norm
  MemoryOutput output;
  // mac only: the second reading, of the attention's output.
  Matrix q2;       // [dm, D]
  Vector q2_conv;  // [K, dm]
  MemoryOutput output2;
  Vector input_norm;  // [D], of x + y
};

struct AttentionWeights {
  Matrix q, k, v, output;  // [D, D]
  // Keys and values of the persistent tokens, [Np, D], not rotated.
  Vector persistent_k, persistent_v;
};

struct Layer : FeedForwardWeights {
  Vector norm;  // [D]
  MemoryWeights memory;
  AttentionWeights attention;  // not in lmm
  Vector attention_norm;       // [D], mal
  Vector mix_attention_norm;   // [D], mac and mag
  Vector mix_memory_norm;      // [D]
  Matrix mix;                  // [D, D]
};

// Matrices point into the checkpoint's mapping, which must outlive them.
struct Weights : DecoderEnds {
  std::vector<Layer> layers;
};

// INVALID_ARGUMENT or NOT_FOUND names the tensor that is missing, has another shape or type or is
// not part of this variant. Fills the size fields of `info`.
absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    Memory& memory, ArchInfo* info);

}  // namespace mneme::engine::titans
