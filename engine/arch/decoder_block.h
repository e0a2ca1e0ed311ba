// The decoder block that several architectures share around their mixers: RMSNorm, projections to
// queries, keys and values, an output projection, RMSNorm, SwiGLU; a residual around each half.
//
//   z = rms(x); q, k, v = W z;  x += o_proj mix(q, k, v);  x += down(silu(gate z') * up z'),
//   z' = rms(x)
//
// Matrices are used where they lie, in the checkpoint's mapping, which must outlive them. Functions
// run over all T rows of a pass; a row's bits do not depend on T.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/weight_reader.h"
#include "engine/core/dtype.h"
#include "engine/core/rows.h"
#include "engine/device/weight_store.h"
#include "engine/kernels/ops.h"

namespace mneme::engine {

// A matrix [rows, columns] and its bias.
struct Linear {
  Matrix weight;
  Vector bias;  // [rows], or none
};

// y [T, rows] = W x (+ bias); with `accumulate`, y += W x (+ bias).
ops::Product Product(const Linear& linear, Rows y, bool accumulate = false);

// Widths in elements. Rows of q, k, v and of what the mixer returns may all differ.
struct DecoderShape {
  int64_t width = 0;  // D
  int64_t q_width = 0;
  int64_t k_width = 0;
  int64_t v_width = 0;
  int64_t mixed_width = 0;
  int64_t ffn_width = 0;   // F
  int64_t vocab_size = 0;  // V
  bool may_have_attention_bias = false;
  bool may_have_mlp_bias = false;
};

// The second half of a layer.
struct FeedForwardWeights {
  Vector ffn_norm;  // [D]
  Linear gate;      // [F, D]; empty if the architecture has its own
  Linear up;        // [F, D]
  Linear down;      // [D, F]
};

struct DecoderLayer : FeedForwardWeights {
  Vector attention_norm;  // [D]
  Linear q;               // [q_width, D]
  Linear k;               // [k_width, D]
  Linear v;               // [v_width, D]
  Linear output;          // [D, mixed_width]
};

// What lies outside the layers, and what owns the vectors of them all.
struct DecoderEnds {
  WeightStore store;
  Matrix embedding;   // [V, D]
  Vector final_norm;  // [D]
  Matrix head;        // [V, D]; the embedding itself if tied
};

// Names of tensors, inside a layer without ".weight" or ".bias".
struct DecoderNames {
  const char *embedding, *final_norm, *head, *layer_prefix;
  const char *attention_norm, *q, *k, *v, *output, *ffn_norm, *gate, *up, *down;
};
extern const DecoderNames kGgufDecoderNames;
extern const DecoderNames kHfDecoderNames;

// "model.layers.7."
std::string LayerPrefix(const DecoderNames& names, int64_t index);
// `name`.weight and, if allowed and there, `name`.bias.
absl::StatusOr<Linear> LoadLinear(WeightReader& reader, const std::string& name, int64_t rows,
                                  int64_t columns, bool may_have_bias = false);
absl::StatusOr<FeedForwardWeights> LoadFeedForward(WeightReader& reader, const DecoderNames& names,
                                                   const DecoderShape& shape, int64_t index,
                                                   bool with_gate = true);
absl::StatusOr<DecoderLayer> LoadDecoderLayer(WeightReader& reader, const DecoderNames& names,
                                              const DecoderShape& shape, int64_t index,
                                              bool with_gate = true);
// Call after the layers: fills the size fields of `info`, which tell the layers from the ends.
absl::Status LoadDecoderEnds(WeightReader& reader, const DecoderNames& names,
                             const DecoderShape& shape, bool tied, ArchInfo* info,
                             DecoderEnds* ends);

// normed [T, D] = rms(x); q, k, v = their products.
void ProjectQkv(Exec& exec, const DecoderLayer& layer, float eps, Rows x, Rows normed, Rows q,
                Rows k, Rows v);
// x += o_proj mixed.
void AddOutput(Exec& exec, const DecoderLayer& layer, Rows mixed, Rows x);
// x += swiglu(rms(x)); normed [T, D], gate and up [T, F] are overwritten.
void FeedForward(Exec& exec, const FeedForwardWeights& layer, float eps, Rows x, Rows normed,
                 Rows gate, Rows up);
// hidden [wanted, D] = final_norm of the rows `wanted` of x.
void WriteHidden(Exec& exec, const DecoderEnds& ends, float eps, std::span<const int64_t> wanted,
                 Rows x, Rows hidden);

// INVALID_ARGUMENT unless it is F16 or F32, the types of stored keys and values.
absl::Status CheckKvDtype(DType dtype);

}  // namespace mneme::engine
