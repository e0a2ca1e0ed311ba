#include "engine/arch/rwkv/rwkv_hf_layout.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv {

absl::StatusOr<Config> ParseHfConfig(const Checkpoint& checkpoint, std::string_view model_type,
                                     WeightReader& reader) {
  MNEME_RETURN_IF_ERROR(RequireModelType(checkpoint, model_type));
  Config config;
  MNEME_ASSIGN_OR_RETURN(config.num_layers, GetCount(checkpoint, "num_hidden_layers", kMaxLayers));
  MNEME_ASSIGN_OR_RETURN(config.width, GetCount(checkpoint, "hidden_size", kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.vocab_size, GetCount(checkpoint, "vocab_size", kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.norm_eps, GetPositive(checkpoint, "layer_norm_epsilon", 1e-5, 1));
  MNEME_RETURN_IF_ERROR(
      RequireAgreement(checkpoint, "attention_hidden_size", config.width, "hidden_size"));
  MNEME_RETURN_IF_ERROR(RequireBool(checkpoint, "tie_word_embeddings", false));

  const std::string key = "rwkv.blocks.0.feed_forward.key.weight";
  const std::string expected = absl::StrCat("[F, ", config.width, "]");
  MNEME_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, reader.Shape(key, expected));
  if (shape.size() != 2 || shape[0] < 1 || shape[0] > kMaxWidth || shape[1] != config.width) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": tensor \"", key, "\": expected shape ", expected));
  }
  config.ffn_width = shape[0];
  MNEME_RETURN_IF_ERROR(RequireAgreement(checkpoint, "intermediate_size", config.ffn_width, key));
  return config;
}

absl::Status FinishHfHeads(const Checkpoint& checkpoint, const std::string& source,
                           Config* config) {
  MNEME_RETURN_IF_ERROR(RequireAgreement(checkpoint, "head_size", config->head_size, source));
  // The memory's output was divided before a group norm with the epsilon of the other norms.
  MNEME_ASSIGN_OR_RETURN(const float divisor, GetPositive(checkpoint, "head_size_divisor", 8, 1e6));
  config->group_norm_eps = config->norm_eps * divisor * divisor;
  if (config->group_norm_eps >= std::numeric_limits<float>::min()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": key 'head_size_divisor' is ",
                                                 divisor, ", too small for layer_norm_epsilon ",
                                                 config->norm_eps));
}

std::string HfAttention(int64_t index) {
  return absl::StrCat("rwkv.blocks.", index, ".attention.");
}

absl::Status LoadHfProjections(WeightReader& reader, const std::string& prefix, int64_t C,
                               Matrix* r, Matrix* k, Matrix* v, Matrix* output) {
  MNEME_ASSIGN_OR_RETURN(*r, reader.Matrix(prefix + "receptance.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(*k, reader.Matrix(prefix + "key.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(*v, reader.Matrix(prefix + "value.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(*output, reader.Matrix(prefix + "output.weight", C, C));
  return absl::OkStatus();
}

absl::StatusOr<Vector> LoadTimeMixShare(WeightReader& reader, const std::string& name, int64_t C) {
  MNEME_ASSIGN_OR_RETURN(std::vector<float> share, reader.Floats(name, {{C}, {1, 1, C}}));
  for (float& x : share) x = 1.0f - x;
  return reader.Place(share);
}

absl::StatusOr<Block> LoadHfBlock(WeightReader& reader, int64_t index, const Config& config,
                                  HfShares shares) {
  const int64_t C = config.width, F = config.ffn_width;
  const std::string prefix = absl::StrCat("rwkv.blocks.", index, ".");
  const std::string ffn = prefix + "feed_forward.";
  Block block;
  MNEME_ASSIGN_OR_RETURN(block.attention_norm, LoadNorm(reader, prefix + "ln1", C));
  MNEME_ASSIGN_OR_RETURN(block.ffn_norm, LoadNorm(reader, prefix + "ln2", C));
  if (shares == HfShares::kTimeMix) {
    MNEME_ASSIGN_OR_RETURN(block.ffn_mu_k, LoadTimeMixShare(reader, ffn + "time_mix_key", C));
    MNEME_ASSIGN_OR_RETURN(block.ffn_mu_r,
                           LoadTimeMixShare(reader, ffn + "time_mix_receptance", C));
  } else {
    MNEME_ASSIGN_OR_RETURN(block.ffn_mu_k, LoadVector(reader, ffn + "time_maa_k", C));
    MNEME_ASSIGN_OR_RETURN(block.ffn_mu_r, LoadVector(reader, ffn + "time_maa_r", C));
  }
  MNEME_ASSIGN_OR_RETURN(block.ffn_key, reader.Matrix(ffn + "key.weight", F, C));
  MNEME_ASSIGN_OR_RETURN(block.ffn_value, reader.Matrix(ffn + "value.weight", C, F));
  MNEME_ASSIGN_OR_RETURN(block.ffn_receptance, reader.Matrix(ffn + "receptance.weight", C, C));
  return block;
}

absl::Status LoadHfEnds(WeightReader& reader, Model* model) {
  return LoadEnds(reader,
                  {.embedding = "rwkv.embeddings.weight",
                   .embedding_norm = "rwkv.blocks.0.pre_ln",
                   .final_norm = "rwkv.ln_out",
                   .head = "head.weight"},
                  model);
}

}  // namespace mneme::engine::rwkv
