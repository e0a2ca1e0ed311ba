#include "engine/arch/fam/weights.h"

#include <algorithm>

#include "engine/arch/weight_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::fam {

absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    Memory& memory, ArchInfo* info) {
  const DecoderNames& names = kHfDecoderNames;
  const int64_t q_width = config.heads * config.head_dim;
  const int64_t kv_width = config.kv_heads * config.head_dim;
  const DecoderShape shape = {.width = config.width,
                              .q_width = q_width,
                              .k_width = kv_width,
                              .v_width = kv_width,
                              .mixed_width = q_width,
                              .ffn_width = config.ffn_width,
                              .vocab_size = config.vocab_size};
  Weights weights;
  weights.store = WeightStore(memory);
  WeightReader reader(checkpoint, "fam", weights.store);
  if (config.fam_tokens > 0) {
    MNEME_ASSIGN_OR_RETURN(weights.prompt,
                           reader.Vector("model.fam_prompt", {{config.fam_tokens, config.width}}));
  }
  const int64_t prompt_bytes = reader.bytes();
  weights.layers.reserve(std::min<int64_t>(config.num_layers, checkpoint.tensors().size()));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    MNEME_ASSIGN_OR_RETURN(weights.layers.emplace_back(),
                           LoadDecoderLayer(reader, names, shape, i));
  }
  MNEME_RETURN_IF_ERROR(
      LoadDecoderEnds(reader, names, shape, config.tied_embeddings, info, &weights));
  info->decode_weight_bytes -= prompt_bytes;  // read once, when the model is loaded
  MNEME_RETURN_IF_ERROR(reader.RefuseUnused());
  return weights;
}

}  // namespace mneme::engine::fam
