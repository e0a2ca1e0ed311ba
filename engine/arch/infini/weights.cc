#include "engine/arch/infini/weights.h"

#include <algorithm>
#include <cmath>

#include "engine/arch/weight_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::infini {

absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    Memory& memory, ArchInfo* info) {
  const DecoderNames& names = kHfDecoderNames;
  const DecoderShape shape = {.width = config.width,
                              .q_width = config.heads * config.head_dim,
                              .k_width = config.kv_heads * config.head_dim,
                              .v_width = config.kv_heads * config.value_head_dim,
                              .mixed_width = config.heads * config.value_head_dim,
                              .ffn_width = config.ffn_width,
                              .vocab_size = config.vocab_size};
  Weights weights;
  weights.store = WeightStore(memory);
  WeightReader reader(checkpoint, "infini", weights.store);
  weights.layers.reserve(std::min<int64_t>(config.num_layers, checkpoint.tensors().size()));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    Layer& layer = weights.layers.emplace_back();
    MNEME_ASSIGN_OR_RETURN(static_cast<DecoderLayer&>(layer),
                           LoadDecoderLayer(reader, names, shape, i));
    const std::string gate = LayerPrefix(names, i) + "self_attn.memory_gate";
    MNEME_ASSIGN_OR_RETURN(const std::vector<float> beta, reader.Floats(gate, {{config.heads}}));
    std::vector<float> memory_share, local_share;
    for (const float b : beta) {
      memory_share.push_back(static_cast<float>(1 / (1 + std::exp(-double(b)))));
      local_share.push_back(static_cast<float>(1 / (1 + std::exp(double(b)))));
    }
    layer.memory_share = reader.Place(memory_share);
    layer.local_share = reader.Place(local_share);
  }
  MNEME_RETURN_IF_ERROR(
      LoadDecoderEnds(reader, names, shape, config.tied_embeddings, info, &weights));
  MNEME_RETURN_IF_ERROR(reader.RefuseUnused());
  return weights;
}

}  // namespace mneme::engine::infini
