#include "engine/arch/llama/config.h"

#include <cmath>
#include <numbers>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
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

// Hugging Face keeps rope settings at the top level or, since version 5, in "rope_parameters".
absl::Status ApplyHfRope(const Checkpoint& checkpoint, Config& config) {
  const bool nested = checkpoint.Has("rope_parameters.rope_theta");
  MNEME_ASSIGN_OR_RETURN(
      const double base,
      GetPositiveDouble(checkpoint, nested ? "rope_parameters.rope_theta" : "rope_theta", 10000.0,
                        1e12));
  config.theta = RopeTheta(base, config.rotary_dim);

  std::string prefix = "rope_scaling.";
  if (checkpoint.Has("rope_parameters.rope_type")) prefix = "rope_parameters.";
  std::string type_key = prefix + "rope_type";
  if (!checkpoint.Has(type_key)) type_key = prefix + "type";  // the older spelling
  MNEME_ASSIGN_OR_RETURN(const std::string type, checkpoint.GetString(type_key, "default"));
  if (type == "default") return absl::OkStatus();
  if (type != "linear" && type != "llama3") return UnknownScaling(checkpoint, type_key, type);
  MNEME_ASSIGN_OR_RETURN(const double factor,
                         GetPositiveDouble(checkpoint, prefix + "factor", std::nullopt, 1e6));
  if (type == "linear") {
    for (double& theta : config.theta) theta /= factor;
    return absl::OkStatus();
  }
  MNEME_ASSIGN_OR_RETURN(const double low, GetPositiveDouble(checkpoint, prefix + "low_freq_factor",
                                                             std::nullopt, 1e6));
  MNEME_ASSIGN_OR_RETURN(
      const double high,
      GetPositiveDouble(checkpoint, prefix + "high_freq_factor", std::nullopt, 1e6));
  MNEME_ASSIGN_OR_RETURN(
      const int64_t original,
      GetIntIn(checkpoint, prefix + "original_max_position_embeddings", 1, kMaxContext));
  if (high <= low) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": key '", prefix,
                                                   "high_freq_factor' is ", high,
                                                   ", expected more than low_freq_factor ", low));
  }
  // Slow pairs are interpolated, fast ones left alone, those between blended.
  for (double& theta : config.theta) {
    const double wavelength = 2 * std::numbers::pi / theta;
    if (wavelength < original / high) continue;
    if (wavelength > original / low) {
      theta /= factor;
      continue;
    }
    const double m = (original / wavelength - low) / (high - low);
    theta *= (1 - m) / factor + m;
  }
  return absl::OkStatus();
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
  if (activation != "silu") {
    return absl::UnimplementedError(absl::StrCat(checkpoint.path(), ": key 'hidden_act' is '",
                                                 activation, "', only 'silu' is supported"));
  }
  MNEME_ASSIGN_OR_RETURN(const double partial, checkpoint.GetFloat("partial_rotary_factor", 1.0));
  if (partial != 1.0) {
    return absl::UnimplementedError(absl::StrCat(
        checkpoint.path(), ": key 'partial_rotary_factor' is ", partial, ", only 1 is supported"));
  }
  MNEME_RETURN_IF_ERROR(CheckShapes(checkpoint, config));
  MNEME_RETURN_IF_ERROR(ApplyHfRope(checkpoint, config));
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
  auto it = metadata.find("architectures");
  // PanGu-pi has a name of its own (engine/arch/pangu_pi/).
  if (HasModelType(checkpoint, {"pangu_pi"})) return false;
  if (it == metadata.end()) return HasModelType(checkpoint, {"llama"});
  const auto* names = std::get_if<std::vector<std::string>>(&it->second);
  return names != nullptr && names->size() == 1 && names->front() == "LlamaForCausalLM";
}

absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint) {
  const bool gguf = checkpoint.format() == Checkpoint::Format::kGguf;
  absl::StatusOr<Config> config = gguf ? ParseGguf(checkpoint) : ParseHf(checkpoint);
  if (config.ok())
    config->architecture = HasModelType(checkpoint, {"pangu_pi"}) ? "pangu_pi" : "llama";
  return config;
}

}  // namespace mneme::engine::llama
