#include "engine/arch/llama/config.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/arch/llama/rope_scaling.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::llama {
namespace {

constexpr int64_t kMaxContext = int64_t{1} << 31;

// A hyper-parameter that files may also write once per layer. Layers that differ are refused: this
// architecture has one shape for all.
absl::StatusOr<int64_t> GetPerLayerInt(const Checkpoint& checkpoint, std::string_view key,
                                       int64_t num_layers, int64_t low, int64_t high,
                                       std::optional<int64_t> fallback = {}) {
  auto it = checkpoint.metadata().find(key);
  const std::vector<int64_t>* values =
      it == checkpoint.metadata().end() ? nullptr : std::get_if<std::vector<int64_t>>(&it->second);
  if (values == nullptr) return GetIntIn(checkpoint, key, low, high, fallback);
  if (static_cast<int64_t>(values->size()) != num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat(KeyName(checkpoint, key), " has ", values->size(),
                     " values, expected one per layer, ", num_layers));
  }
  for (const int64_t value : *values) {
    if (value != values->front()) {
      return absl::UnimplementedError(absl::StrCat(
          KeyName(checkpoint, key), " differs between layers, which is not supported"));
    }
  }
  if (values->front() < low || values->front() > high) {
    return KeyOutOfRange(checkpoint, key, values->front(), low, high);
  }
  return values->front();
}

absl::Status RefuseNonZero(const Checkpoint& checkpoint, std::string_view key) {
  if (!checkpoint.Has(key)) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(const int64_t value, checkpoint.GetInt(key));
  if (value == 0) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(KeyName(checkpoint, key), " is ", value, ", which is not supported"));
}

absl::Status UnknownScaling(const Checkpoint& checkpoint, std::string_view key,
                            const std::string& type) {
  return absl::UnimplementedError(
      absl::StrCat(KeyName(checkpoint, key), ": rope scaling '", type, "' is not supported"));
}

absl::Status CheckShapes(const Checkpoint& checkpoint, const Config& config) {
  if (config.heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": ", config.heads,
                                                   " query heads are not a multiple of ",
                                                   config.kv_heads, " key/value heads"));
  }
  if (config.head_dim % 2 != 0 || config.heads * config.head_dim > kMaxHeadWidth) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": head width ", config.head_dim, " with ", config.heads,
                     " heads: expected an even width and at most ", kMaxHeadWidth, " in total"));
  }
  if (config.rotary_dim % 2 != 0 || config.rotary_dim > config.head_dim) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": rotary dimension ", config.rotary_dim,
                     ": expected an even number up to the head width ", config.head_dim));
  }
  return absl::OkStatus();
}

// Scores carry the magnitude of queries and of keys.
absl::Status ApplyYarn(const Checkpoint& checkpoint, const YarnScaling& yarn, double base,
                       double magnitude, Config* config) {
  if (yarn.beta_fast <= yarn.beta_slow || base <= 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint.path(), ": rope scaling 'yarn' with beta_fast ", yarn.beta_fast, ", beta_slow ",
        yarn.beta_slow, " and base ", base, ", expected beta_fast above beta_slow, base above 1"));
  }
  ScaleYarn(yarn, base, config->theta);
  config->attention_scale =
      static_cast<float>(double{config->attention_scale} * magnitude * magnitude);
  return absl::OkStatus();
}

absl::Status ApplyGgufYarn(const Checkpoint& checkpoint, double base, Config* config) {
  const std::string prefix = "llama.rope.scaling.";
  YarnScaling yarn;
  MNEME_ASSIGN_OR_RETURN(yarn.factor,
                         GetPositiveDouble(checkpoint, prefix + "factor", std::nullopt, 1e6));
  MNEME_ASSIGN_OR_RETURN(const int64_t original,
                         GetIntIn(checkpoint, prefix + "original_context_length", 1, kMaxContext,
                                  config->trained_context));
  yarn.original_context = static_cast<double>(original);
  MNEME_ASSIGN_OR_RETURN(yarn.beta_fast, GetPositiveDouble(checkpoint, prefix + "yarn_beta_fast",
                                                           yarn.beta_fast, 1e6));
  MNEME_ASSIGN_OR_RETURN(yarn.beta_slow, GetPositiveDouble(checkpoint, prefix + "yarn_beta_slow",
                                                           yarn.beta_slow, 1e6));
  MNEME_ASSIGN_OR_RETURN(const double magnitude,
                         GetPositiveDouble(checkpoint, prefix + "attn_factor", 1.0, 1e6));
  return ApplyYarn(checkpoint, yarn, base, magnitude * YarnMagnitude(yarn.factor), config);
}

absl::StatusOr<Config> ParseGguf(const Checkpoint& checkpoint) {
  Config config;
  config.rope_layout = RopeLayout::kInterleaved;
  config.may_have_attention_bias = true;
  config.may_have_mlp_bias = true;
  MNEME_ASSIGN_OR_RETURN(config.num_layers,
                         GetIntIn(checkpoint, "llama.block_count", 1, kMaxLayers));
  MNEME_ASSIGN_OR_RETURN(config.width,
                         GetIntIn(checkpoint, "llama.embedding_length", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.trained_context,
                         GetIntIn(checkpoint, "llama.context_length", 1, kMaxContext));
  MNEME_ASSIGN_OR_RETURN(config.ffn_width, GetPerLayerInt(checkpoint, "llama.feed_forward_length",
                                                          config.num_layers, 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.heads, GetPerLayerInt(checkpoint, "llama.attention.head_count",
                                                      config.num_layers, 1, kMaxHeadWidth));
  MNEME_ASSIGN_OR_RETURN(config.kv_heads,
                         GetPerLayerInt(checkpoint, "llama.attention.head_count_kv",
                                        config.num_layers, 1, config.heads, config.heads));
  // An explicit head width is trusted over D / H (some models' heads do not fill the width).
  std::optional<int64_t> quotient;
  if (config.width % config.heads == 0) quotient = config.width / config.heads;
  MNEME_ASSIGN_OR_RETURN(config.head_dim, GetIntIn(checkpoint, "llama.attention.key_length", 1,
                                                   kMaxHeadWidth, quotient));
  MNEME_ASSIGN_OR_RETURN(
      const int64_t value_length,
      GetIntIn(checkpoint, "llama.attention.value_length", 1, kMaxHeadWidth, config.head_dim));
  if (value_length != config.head_dim) {
    return absl::UnimplementedError(absl::StrCat(
        checkpoint.path(), ": key 'llama.attention.value_length' is ", value_length,
        ", which differs from the key length ", config.head_dim, "; this is not supported"));
  }
  MNEME_ASSIGN_OR_RETURN(
      const double eps,
      GetPositiveDouble(checkpoint, "llama.attention.layer_norm_rms_epsilon", std::nullopt, 1.0));
  config.rms_eps = static_cast<float>(eps);
  MNEME_ASSIGN_OR_RETURN(const double scale,
                         GetPositiveDouble(checkpoint, "llama.attention.scale",
                                           1 / std::sqrt(double(config.head_dim)), 1e6));
  config.attention_scale = static_cast<float>(scale);
  MNEME_ASSIGN_OR_RETURN(config.rotary_dim, GetIntIn(checkpoint, "llama.rope.dimension_count", 2,
                                                     kMaxHeadWidth, config.head_dim));
  for (const char* key : {"llama.expert_count", "llama.attention.sliding_window"}) {
    MNEME_RETURN_IF_ERROR(RefuseNonZero(checkpoint, key));
  }
  MNEME_RETURN_IF_ERROR(CheckShapes(checkpoint, config));

  // V is the embedding's rows; a file may carry fewer tokens (padding), never more.
  auto embedding = checkpoint.tensors().find("token_embd.weight");
  if (embedding == checkpoint.tensors().end() || embedding->second.shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": tensor 'token_embd.weight' is missing or not a matrix"));
  }
  config.vocab_size = embedding->second.shape[0];
  if (config.vocab_size < 1 || config.vocab_size > kMaxWidth) {
    return KeyOutOfRange(checkpoint, "token_embd.weight rows", config.vocab_size, 1, kMaxWidth);
  }
  auto tokens = checkpoint.metadata().find("tokenizer.ggml.tokens");
  if (tokens != checkpoint.metadata().end()) {
    const auto* pieces = std::get_if<std::vector<std::string>>(&tokens->second);
    if (pieces != nullptr && static_cast<int64_t>(pieces->size()) > config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          checkpoint.path(), ": key 'tokenizer.ggml.tokens' has ", pieces->size(),
          " tokens, but tensor 'token_embd.weight' only ", config.vocab_size, " rows"));
    }
  }

  MNEME_ASSIGN_OR_RETURN(const double base,
                         GetPositiveDouble(checkpoint, "llama.rope.freq_base", 10000.0, 1e12));
  config.theta = RopeTheta(base, config.rotary_dim);
  MNEME_ASSIGN_OR_RETURN(const std::string scaling,
                         checkpoint.GetString("llama.rope.scaling.type", "none"));
  if (scaling == "linear") {
    MNEME_ASSIGN_OR_RETURN(const double factor,
                           GetPositiveDouble(checkpoint, "llama.rope.scaling.factor", 1.0, 1e6));
    for (double& theta : config.theta) theta /= factor;
  } else if (scaling == "yarn") {
    MNEME_RETURN_IF_ERROR(ApplyGgufYarn(checkpoint, base, &config));
  } else if (scaling != "none") {
    return UnknownScaling(checkpoint, "llama.rope.scaling.type", scaling);
  }
  // Llama 3 scaling arrives as a divisor per pair.
  if (checkpoint.tensors().contains("rope_freqs.weight")) {
    MNEME_ASSIGN_OR_RETURN(const std::vector<float> divisors,
                           checkpoint.GetVector("rope_freqs.weight", config.rotary_dim / 2));
    for (size_t j = 0; j < divisors.size(); ++j) {
      if (!(divisors[j] > 0)) {
        return absl::InvalidArgumentError(
            absl::StrCat(checkpoint.path(), ": tensor 'rope_freqs.weight' element ", j, " is ",
                         divisors[j], ", expected more than 0"));
      }
      config.theta[j] /= divisors[j];
    }
  }
  return config;
}

absl::Status ApplyHfLlama3(const Checkpoint& checkpoint, const std::string& prefix,
                           Config* config) {
  Llama3Scaling scaling;
  MNEME_ASSIGN_OR_RETURN(scaling.factor,
                         GetPositiveDouble(checkpoint, prefix + "factor", std::nullopt, 1e6));
  MNEME_ASSIGN_OR_RETURN(
      scaling.low_frequency_factor,
      GetPositiveDouble(checkpoint, prefix + "low_freq_factor", std::nullopt, 1e6));
  MNEME_ASSIGN_OR_RETURN(
      scaling.high_frequency_factor,
      GetPositiveDouble(checkpoint, prefix + "high_freq_factor", std::nullopt, 1e6));
  MNEME_ASSIGN_OR_RETURN(
      const int64_t original,
      GetIntIn(checkpoint, prefix + "original_max_position_embeddings", 1, kMaxContext));
  scaling.original_context = static_cast<double>(original);
  if (scaling.high_frequency_factor <= scaling.low_frequency_factor) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": key '", prefix, "high_freq_factor' is ",
                     scaling.high_frequency_factor, ", expected more than low_freq_factor ",
                     scaling.low_frequency_factor));
  }
  ScaleLlama3(scaling, config->theta);
  return absl::OkStatus();
}

// A positive number that may be absent.
absl::StatusOr<std::optional<double>> GetOptional(const Checkpoint& checkpoint,
                                                  const std::string& key) {
  if (!checkpoint.Has(key)) return std::nullopt;
  MNEME_ASSIGN_OR_RETURN(const double value, GetPositiveDouble(checkpoint, key, std::nullopt, 1e6));
  return value;
}

absl::Status ApplyHfYarn(const Checkpoint& checkpoint, const std::string& prefix, double base,
                         Config* config) {
  YarnScaling yarn;
  MNEME_ASSIGN_OR_RETURN(const int64_t original,
                         GetIntIn(checkpoint, prefix + "original_max_position_embeddings", 1,
                                  kMaxContext, config->trained_context));
  yarn.original_context = static_cast<double>(original);
  MNEME_ASSIGN_OR_RETURN(
      yarn.factor,
      GetPositiveDouble(checkpoint, prefix + "factor",
                        static_cast<double>(config->trained_context) / yarn.original_context, 1e6));
  MNEME_ASSIGN_OR_RETURN(yarn.beta_fast,
                         GetPositiveDouble(checkpoint, prefix + "beta_fast", yarn.beta_fast, 1e6));
  MNEME_ASSIGN_OR_RETURN(yarn.beta_slow,
                         GetPositiveDouble(checkpoint, prefix + "beta_slow", yarn.beta_slow, 1e6));
  MNEME_ASSIGN_OR_RETURN(yarn.whole_pairs, checkpoint.GetBool(prefix + "truncate", true));
  MNEME_ASSIGN_OR_RETURN(std::optional<double> magnitude,
                         GetOptional(checkpoint, prefix + "attention_factor"));
  if (!magnitude.has_value()) {
    MNEME_ASSIGN_OR_RETURN(const std::optional<double> above,
                           GetOptional(checkpoint, prefix + "mscale"));
    MNEME_ASSIGN_OR_RETURN(const std::optional<double> below,
                           GetOptional(checkpoint, prefix + "mscale_all_dim"));
    magnitude = above.has_value() && below.has_value()
                    ? YarnMagnitude(yarn.factor, *above) / YarnMagnitude(yarn.factor, *below)
                    : YarnMagnitude(yarn.factor);
  }
  return ApplyYarn(checkpoint, yarn, base, *magnitude, config);
}

// Hugging Face keeps rope settings at the top level or, since version 5, in "rope_parameters".
absl::Status ApplyHfRope(const Checkpoint& checkpoint, Config* config) {
  const bool nested = checkpoint.Has("rope_parameters.rope_theta");
  MNEME_ASSIGN_OR_RETURN(
      const double base,
      GetPositiveDouble(checkpoint, nested ? "rope_parameters.rope_theta" : "rope_theta", 10000.0,
                        1e12));
  config->theta = RopeTheta(base, config->rotary_dim);

  std::string prefix = "rope_scaling.";
  if (checkpoint.Has("rope_parameters.rope_type")) prefix = "rope_parameters.";
  std::string type_key = prefix + "rope_type";
  if (!checkpoint.Has(type_key)) type_key = prefix + "type";  // the older spelling
  MNEME_ASSIGN_OR_RETURN(const std::string type, checkpoint.GetString(type_key, "default"));
  // The dynamic base grows with a text beyond the trained context. Here no token sees so far, and
  // within that context the angles are the plain ones.
  if (type == "default" || type == "dynamic") return absl::OkStatus();
  if (type == "llama3") return ApplyHfLlama3(checkpoint, prefix, config);
  if (type == "yarn") return ApplyHfYarn(checkpoint, prefix, base, config);
  if (type != "linear") return UnknownScaling(checkpoint, type_key, type);
  MNEME_ASSIGN_OR_RETURN(const double factor,
                         GetPositiveDouble(checkpoint, prefix + "factor", std::nullopt, 1e6));
  for (double& theta : config->theta) theta /= factor;
  return absl::OkStatus();
}

// Whether config.json's only architecture is `name`; without any, whether its model_type is `type`.
bool IsHfModel(const Checkpoint& checkpoint, std::string_view name, std::string_view type) {
  const auto it = checkpoint.metadata().find("architectures");
  if (it == checkpoint.metadata().end()) return HasModelType(checkpoint, {type});
  const auto* names = std::get_if<std::vector<std::string>>(&it->second);
  return names != nullptr && names->size() == 1 && names->front() == name;
}

bool IsMistral(const Checkpoint& checkpoint) {
  return IsHfModel(checkpoint, "MistralForCausalLM", "mistral");
}

absl::StatusOr<Config> ParseHf(const Checkpoint& checkpoint) {
  Config config;
  config.rope_layout = RopeLayout::kHalf;
  MNEME_ASSIGN_OR_RETURN(config.num_layers,
                         GetIntIn(checkpoint, "num_hidden_layers", 1, kMaxLayers));
  MNEME_ASSIGN_OR_RETURN(config.width, GetIntIn(checkpoint, "hidden_size", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.trained_context,
                         GetIntIn(checkpoint, "max_position_embeddings", 1, kMaxContext));
  MNEME_ASSIGN_OR_RETURN(config.ffn_width, GetIntIn(checkpoint, "intermediate_size", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.heads,
                         GetIntIn(checkpoint, "num_attention_heads", 1, kMaxHeadWidth));
  MNEME_ASSIGN_OR_RETURN(
      config.kv_heads, GetIntIn(checkpoint, "num_key_value_heads", 1, config.heads, config.heads));
  std::optional<int64_t> quotient;
  if (config.width % config.heads == 0) quotient = config.width / config.heads;
  MNEME_ASSIGN_OR_RETURN(config.head_dim,
                         GetIntIn(checkpoint, "head_dim", 1, kMaxHeadWidth, quotient));
  config.rotary_dim = config.head_dim;
  MNEME_ASSIGN_OR_RETURN(config.vocab_size, GetIntIn(checkpoint, "vocab_size", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(const double eps,
                         GetPositiveDouble(checkpoint, "rms_norm_eps", 1e-6, 1.0));
  config.rms_eps = static_cast<float>(eps);
  config.attention_scale = static_cast<float>(1 / std::sqrt(double(config.head_dim)));
  MNEME_ASSIGN_OR_RETURN(config.requires_tied_embeddings,
                         checkpoint.GetBool("tie_word_embeddings", false));
  MNEME_ASSIGN_OR_RETURN(config.may_have_attention_bias,
                         checkpoint.GetBool("attention_bias", false));
  MNEME_ASSIGN_OR_RETURN(config.may_have_mlp_bias, checkpoint.GetBool("mlp_bias", false));
  MNEME_ASSIGN_OR_RETURN(const std::string activation, checkpoint.GetString("hidden_act", "silu"));
  if (activation != "silu" && activation != "swish") {  // two names of one function
    return absl::UnimplementedError(absl::StrCat(checkpoint.path(), ": key 'hidden_act' is '",
                                                 activation, "', only 'silu' is supported"));
  }
  MNEME_ASSIGN_OR_RETURN(const double partial, checkpoint.GetFloat("partial_rotary_factor", 1.0));
  if (partial != 1.0) {
    return absl::UnimplementedError(absl::StrCat(
        checkpoint.path(), ": key 'partial_rotary_factor' is ", partial, ", only 1 is supported"));
  }
  MNEME_RETURN_IF_ERROR(CheckShapes(checkpoint, config));
  MNEME_RETURN_IF_ERROR(ApplyHfRope(checkpoint, &config));
  // Mistral's first models see no further back than a window, whatever the positions.
  if (IsMistral(checkpoint)) {
    MNEME_ASSIGN_OR_RETURN(const int64_t window, GetIntIn(checkpoint, "sliding_window", 1,
                                                          kMaxContext, config.trained_context));
    config.trained_context = std::min(config.trained_context, window);
  }
  MNEME_ASSIGN_OR_RETURN(config.pangu, ParsePanguOptions(checkpoint, config.width));
  return config;
}

}  // namespace

bool Matches(const Checkpoint& checkpoint) {
  const auto& metadata = checkpoint.metadata();
  if (checkpoint.format() == Checkpoint::Format::kGguf) {
    auto it = metadata.find("general.architecture");
    const auto* name = it == metadata.end() ? nullptr : std::get_if<std::string>(&it->second);
    return name != nullptr && *name == "llama";
  }
  // PanGu-pi has a name of its own (engine/arch/pangu_pi/).
  if (HasModelType(checkpoint, {"pangu_pi"})) return false;
  return IsHfModel(checkpoint, "LlamaForCausalLM", "llama") || IsMistral(checkpoint);
}

absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint) {
  const bool gguf = checkpoint.format() == Checkpoint::Format::kGguf;
  absl::StatusOr<Config> config = gguf ? ParseGguf(checkpoint) : ParseHf(checkpoint);
  if (config.ok())
    config->architecture = HasModelType(checkpoint, {"pangu_pi"}) ? "pangu_pi" : "llama";
  return config;
}

}  // namespace mneme::engine::llama
