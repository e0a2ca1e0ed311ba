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
  std::vector<float> norm;  // [e]
  Weight gate;              // [dm, D]
  Weight output;            // [D, dm]
};

struct MemoryWeights {
  Weight q, k, v;                             // [dm, D]
  std::vector<float> q_conv, k_conv, v_conv;  // [K, dm]; the last tap meets the current token
  Weight rates;                               // [3 H, D]
  std::vector<float> rates_bias;              // [3 H]
  std::vector<std::vector<float>> init;       // M_0 [depth], each [H, in, out]
  std::vector<float> gain;                    // [H, e], empty without a norm
  MemoryOutput output;
  // mac only: the second reading, of the attention's output.
  Weight q2;                   // [dm, D]
  std::vector<float> q2_conv;  // [K, dm]
  MemoryOutput output2;
  std::vector<float> input_norm;  // [D], of x + y
};

struct AttentionWeights {
  Weight q, k, v, output;  // [D, D]
  // Keys and values of the persistent tokens, [Np, D], not rotated.
  std::vector<float> persistent_k, persistent_v;
};

struct Layer : FeedForwardWeights {
  std::vector<float> norm;  // [D]
  MemoryWeights memory;
  AttentionWeights attention;             // not in lmm
  std::vector<float> attention_norm;      // [D], mal
  std::vector<float> mix_attention_norm;  // [D], mac and mag
  std::vector<float> mix_memory_norm;     // [D]
  Weight mix;                             // [D, D]
};

// Matrices point into the checkpoint's mapping, which must outlive them.
struct Weights : DecoderEnds {
  std::vector<Layer> layers;
};

// INVALID_ARGUMENT or NOT_FOUND names the tensor that is missing, has another shape or type or is
// not part of this variant. Fills the size fields of `info`.
absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    ArchInfo* info);

}  // namespace mneme::engine::titans
