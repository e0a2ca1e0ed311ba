#include "engine/arch/titans/weights.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/arch/weight_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::titans {
namespace {

// Of the parts that are those of any decoder.
DecoderShape Shape(const Config& config) {
  return {.width = config.width, .ffn_width = config.ffn_width, .vocab_size = config.vocab_size};
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const Config& config, WeightStore& store)
      : reader_(checkpoint, "titans", store), config_(config) {}

  WeightReader& reader() { return reader_; }
  absl::StatusOr<engine::Vector> Vector(const std::string& name, int64_t size) {
    return reader_.Vector(name, {{size}});
  }
  absl::StatusOr<Layer> ReadLayer(int64_t index);

 private:
  absl::StatusOr<MemoryWeights> ReadMemory(const std::string& prefix);
  absl::StatusOr<MemoryOutput> ReadOutput(const std::string& prefix, const std::string& suffix);
  absl::StatusOr<AttentionWeights> ReadAttention(const std::string& prefix);
  // Stored as [dm, K], used as [K, dm].
  absl::StatusOr<engine::Vector> Taps(const std::string& name);

  WeightReader reader_;
  const Config& config_;
};

absl::StatusOr<engine::Vector> Loader::Taps(const std::string& name) {
  const int64_t width = config_.memory_width(), K = config_.conv_taps;
  MNEME_ASSIGN_OR_RETURN(const std::vector<float> stored, reader_.Floats(name, {{width, K}}));
  std::vector<float> taps(stored.size());
  for (int64_t c = 0; c < width; ++c) {
    for (int64_t k = 0; k < K; ++k) taps[k * width + c] = stored[c * K + k];
  }
  return reader_.Place(taps);
}

absl::StatusOr<MemoryOutput> Loader::ReadOutput(const std::string& prefix,
                                                const std::string& suffix) {
  const int64_t D = config_.width, width = config_.memory_width();
  MemoryOutput output;
  MNEME_ASSIGN_OR_RETURN(output.norm,
                         Vector(prefix + "output_norm" + suffix + ".weight", config_.memory.width));
  MNEME_ASSIGN_OR_RETURN(output.gate,
                         reader_.Matrix(prefix + "output_gate" + suffix + ".weight", width, D));
  MNEME_ASSIGN_OR_RETURN(
      output.output, reader_.Matrix(absl::StrCat(prefix, "o", suffix, "_proj.weight"), D, width));
  return output;
}

absl::StatusOr<MemoryWeights> Loader::ReadMemory(const std::string& prefix) {
  const int64_t D = config_.width, width = config_.memory_width(), H = config_.memory_heads;
  MemoryWeights memory;
  MNEME_ASSIGN_OR_RETURN(memory.q, reader_.Matrix(prefix + "q_proj.weight", width, D));
  MNEME_ASSIGN_OR_RETURN(memory.k, reader_.Matrix(prefix + "k_proj.weight", width, D));
  MNEME_ASSIGN_OR_RETURN(memory.v, reader_.Matrix(prefix + "v_proj.weight", width, D));
  MNEME_ASSIGN_OR_RETURN(memory.q_conv, Taps(prefix + "q_conv.weight"));
  MNEME_ASSIGN_OR_RETURN(memory.k_conv, Taps(prefix + "k_conv.weight"));
  MNEME_ASSIGN_OR_RETURN(memory.v_conv, Taps(prefix + "v_conv.weight"));
  MNEME_ASSIGN_OR_RETURN(memory.rates, reader_.Matrix(prefix + "gate.weight", 3 * H, D));
  MNEME_ASSIGN_OR_RETURN(memory.rates_bias, Vector(prefix + "gate.bias", 3 * H));
  for (int64_t l = 0; l < config_.memory.depth; ++l) {
    MNEME_ASSIGN_OR_RETURN(
        memory.init.emplace_back(),
        reader_.Vector(absl::StrCat(prefix, "init.", l),
                       {{H, config_.memory.Inputs(l), config_.memory.Outputs(l)}}));
  }
  if (config_.memory.norm != TitansNorm::kNone) {
    MNEME_ASSIGN_OR_RETURN(memory.gain,
                           reader_.Vector(prefix + "norm.weight", {{H, config_.memory.width}}));
  }
  MNEME_ASSIGN_OR_RETURN(memory.output, ReadOutput(prefix, ""));
  if (config_.IsContext()) {
    MNEME_ASSIGN_OR_RETURN(memory.q2, reader_.Matrix(prefix + "q2_proj.weight", width, D));
    MNEME_ASSIGN_OR_RETURN(memory.q2_conv, Taps(prefix + "q2_conv.weight"));
    MNEME_ASSIGN_OR_RETURN(memory.output2, ReadOutput(prefix, "2"));
    MNEME_ASSIGN_OR_RETURN(memory.input_norm, Vector(prefix + "input_norm.weight", D));
  }
  return memory;
}

// rows [count, D] times weight^T [D, D], in double: the same keys on every backend and contract.
std::vector<float> Project(const std::vector<float>& rows, int64_t count,
                           const std::vector<float>& weight) {
  const auto D = static_cast<int64_t>(rows.size()) / count;
  std::vector<float> y(rows.size());
  for (int64_t n = 0; n < D; ++n) {
    for (int64_t t = 0; t < count; ++t) {
      double sum = 0;
      for (int64_t i = 0; i < D; ++i) sum += double(rows[t * D + i]) * weight[n * D + i];
      y[t * D + n] = static_cast<float>(sum);
    }
  }
  return y;
}

absl::StatusOr<AttentionWeights> Loader::ReadAttention(const std::string& prefix) {
  const int64_t D = config_.width, count = config_.persistent_tokens;
  AttentionWeights attention;
  MNEME_ASSIGN_OR_RETURN(attention.q, reader_.Matrix(prefix + "q_proj.weight", D, D));
  MNEME_ASSIGN_OR_RETURN(attention.k, reader_.Matrix(prefix + "k_proj.weight", D, D));
  MNEME_ASSIGN_OR_RETURN(attention.v, reader_.Matrix(prefix + "v_proj.weight", D, D));
  MNEME_ASSIGN_OR_RETURN(attention.output, reader_.Matrix(prefix + "o_proj.weight", D, D));
  if (count > 0) {
    MNEME_ASSIGN_OR_RETURN(const std::vector<float> persistent,
                           reader_.Floats(prefix + "persistent", {{count, D}}));
    MNEME_ASSIGN_OR_RETURN(const std::vector<float> k,
                           reader_.Dequantized(prefix + "k_proj.weight"));
    MNEME_ASSIGN_OR_RETURN(const std::vector<float> v,
                           reader_.Dequantized(prefix + "v_proj.weight"));
    attention.persistent_k = reader_.Place(Project(persistent, count, k));
    attention.persistent_v = reader_.Place(Project(persistent, count, v));
  }
  return attention;
}

absl::StatusOr<Layer> Loader::ReadLayer(int64_t index) {
  const int64_t D = config_.width;
  const std::string prefix = LayerPrefix(kHfDecoderNames, index);
  Layer layer;
  MNEME_ASSIGN_OR_RETURN(layer.norm, Vector(prefix + "input_layernorm.weight", D));
  MNEME_ASSIGN_OR_RETURN(layer.memory, ReadMemory(prefix + "memory."));
  if (config_.HasAttention()) {
    MNEME_ASSIGN_OR_RETURN(layer.attention, ReadAttention(prefix + "self_attn."));
  }
  if (config_.variant == Variant::kLayer) {
    MNEME_ASSIGN_OR_RETURN(layer.attention_norm, Vector(prefix + "attention_layernorm.weight", D));
  }
  if (config_.HasMix()) {
    MNEME_ASSIGN_OR_RETURN(layer.mix_attention_norm,
                           Vector(prefix + "mix.attention_norm.weight", D));
    MNEME_ASSIGN_OR_RETURN(layer.mix_memory_norm, Vector(prefix + "mix.memory_norm.weight", D));
    MNEME_ASSIGN_OR_RETURN(layer.mix, reader_.Matrix(prefix + "mix.o_proj.weight", D, D));
  }
  MNEME_ASSIGN_OR_RETURN(static_cast<FeedForwardWeights&>(layer),
                         LoadFeedForward(reader_, kHfDecoderNames, Shape(config_), index));
  return layer;
}

}  // namespace

absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    Memory& memory, ArchInfo* info) {
  Weights weights;
  weights.store = WeightStore(memory);
  Loader loader(checkpoint, config, weights.store);
  // A hostile number of layers must not reserve more than the file could fill.
  weights.layers.reserve(
      std::min<size_t>(static_cast<size_t>(config.num_layers), checkpoint.tensors().size()));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    MNEME_ASSIGN_OR_RETURN(Layer layer, loader.ReadLayer(i));
    weights.layers.push_back(std::move(layer));
  }
  WeightReader& reader = loader.reader();
  MNEME_RETURN_IF_ERROR(LoadDecoderEnds(reader, kHfDecoderNames, Shape(config),
                                        config.tied_embeddings, info, &weights));
  MNEME_RETURN_IF_ERROR(reader.RefuseUnused());
  return weights;
}

}  // namespace mneme::engine::titans
