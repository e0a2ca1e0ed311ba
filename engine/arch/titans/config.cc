#include "engine/arch/titans/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::titans {
namespace {

// Far above any real model, far below what could overflow a product of a few of them.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxWidth = int64_t{1} << 24;
constexpr int64_t kMaxMemoryWidth = int64_t{1} << 20;  // H * e, and h
constexpr int64_t kMaxDepth = 64;
constexpr int64_t kMaxTokens = int64_t{1} << 24;  // chunk, window, segment, persistent
constexpr int64_t kMaxTaps = 4096;
constexpr int64_t kVersion = 1;

// Not used by the mathematics.
constexpr std::string_view kIgnored[] = {
    "architectures", "torch_dtype",  "dtype",        "transformers_version",
    "use_cache",     "name",         "license",      "tokenizer",
    "add_bos_token", "bos_token_id", "eos_token_id", "pad_token_id"};

constexpr std::string_view kKeys[] = {"model_type",
                                      "mneme_config_version",
                                      "variant",
                                      "vocab_size",
                                      "hidden_size",
                                      "num_hidden_layers",
                                      "intermediate_size",
                                      "memory_heads",
                                      "memory_head_dim",
                                      "memory_depth",
                                      "memory_hidden_dim",
                                      "memory_activation",
                                      "memory_residual",
                                      "memory_norm",
                                      "memory_chunk_tokens",
                                      "read_mode",
                                      "decay_to",
                                      "theta_max",
                                      "eta_max",
                                      "forget",
                                      "gate_floor",
                                      "gradient_clip",
                                      "conv_taps",
                                      "rope_theta",
                                      "rope_pairing",
                                      "rms_norm_eps",
                                      "tie_word_embeddings"};

// Keys that only some variants have.
struct VariantKey {
  std::string_view key;
  bool context, gate, layer;
};
constexpr VariantKey kVariantKeys[] = {{"num_attention_heads", true, true, true},
                                       {"persistent_tokens", true, true, true},
                                       {"window_tokens", false, true, true},
                                       {"segment_tokens", true, false, false},
                                       {"gate_mix", true, true, false}};

bool Serves(const VariantKey& key, Variant variant) {
  return (variant == Variant::kContext && key.context) || (variant == Variant::kGate && key.gate) ||
         (variant == Variant::kLayer && key.layer);
}

class Reader {
 public:
  explicit Reader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  std::string Key(std::string_view key) const {
    return absl::StrCat(checkpoint_.path(), ": key '", absl::string_view(key.data(), key.size()),
                        "'");
  }

  absl::StatusOr<int64_t> Int(std::string_view key, int64_t low, int64_t high,
                              std::optional<int64_t> fallback = {}) const {
    MNEME_ASSIGN_OR_RETURN(const int64_t value, checkpoint_.GetInt(key, fallback));
    if (value < low || value > high) {
      return absl::InvalidArgumentError(
          absl::StrCat(Key(key), " is ", value, ", expected ", low, "..", high));
    }
    return value;
  }

  absl::StatusOr<float> Float(std::string_view key, double low, double high,
                              double fallback) const {
    MNEME_ASSIGN_OR_RETURN(const double value, checkpoint_.GetFloat(key, fallback));
    if (!(value >= low) || !(value <= high)) {
      return absl::InvalidArgumentError(
          absl::StrCat(Key(key), " is ", value, ", expected ", low, " to ", high));
    }
    return static_cast<float>(value);
  }

  // Index of the key's value in `choices`.
  absl::StatusOr<int> Choice(std::string_view key, std::initializer_list<const char*> choices,
                             std::optional<std::string> fallback) const {
    MNEME_ASSIGN_OR_RETURN(const std::string value,
                           checkpoint_.GetString(key, std::move(fallback)));
    const auto found = std::find(choices.begin(), choices.end(), value);
    if (found == choices.end()) {
      return absl::InvalidArgumentError(absl::StrCat(Key(key), " is '", value, "', expected '",
                                                     absl::StrJoin(choices, "' or '"), "'"));
    }
    return static_cast<int>(found - choices.begin());
  }

  absl::StatusOr<bool> Bool(std::string_view key, bool fallback) const {
    return checkpoint_.GetBool(key, fallback);
  }
  bool Has(std::string_view key) const { return checkpoint_.Has(key); }

  absl::Status RefuseUnknown(Variant variant) const {
    const auto has = [](std::span<const std::string_view> keys, std::string_view key) {
      return std::find(keys.begin(), keys.end(), key) != keys.end();
    };
    for (const auto& [key, value] : checkpoint_.metadata()) {
      if (has(kKeys, key) || has(kIgnored, key)) continue;
      const auto* special =
          std::find_if(std::begin(kVariantKeys), std::end(kVariantKeys),
                       [&key = key](const VariantKey& k) { return k.key == key; });
      if (special == std::end(kVariantKeys)) {
        return absl::InvalidArgumentError(
            absl::StrCat(Key(key), " is not part of the titans architecture"));
      }
      if (!Serves(*special, variant)) {
        return absl::InvalidArgumentError(
            absl::StrCat(Key(key), " is not part of this variant of the titans architecture"));
      }
    }
    return absl::OkStatus();
  }

 private:
  const Checkpoint& checkpoint_;
};

// Smallest number that is not zero in f32.
constexpr double kTiny = std::numeric_limits<float>::min();

absl::Status ParseMemory(const Reader& reader, Config* config) {
  TitansMemoryShape& memory = config->memory;
  MNEME_ASSIGN_OR_RETURN(config->memory_heads, reader.Int("memory_heads", 1, kMaxMemoryWidth));
  MNEME_ASSIGN_OR_RETURN(memory.width,
                         reader.Int("memory_head_dim", 1, kMaxMemoryWidth / config->memory_heads));
  MNEME_ASSIGN_OR_RETURN(memory.depth, reader.Int("memory_depth", 1, kMaxDepth, 2));
  if (memory.depth > 1) {
    MNEME_ASSIGN_OR_RETURN(memory.hidden, reader.Int("memory_hidden_dim", 1, kMaxMemoryWidth));
  } else if (reader.Has("memory_hidden_dim")) {
    return absl::InvalidArgumentError(
        absl::StrCat(reader.Key("memory_hidden_dim"), " needs a memory_depth above 1"));
  }
  MNEME_ASSIGN_OR_RETURN(
      const int activation,
      reader.Choice("memory_activation", {"silu", "gelu_tanh", "gelu_erf"}, "silu"));
  memory.activation = static_cast<TitansActivation>(activation);
  MNEME_ASSIGN_OR_RETURN(memory.residual, reader.Bool("memory_residual", true));
  MNEME_ASSIGN_OR_RETURN(const int norm,
                         reader.Choice("memory_norm", {"none", "rms", "layer"}, "none"));
  memory.norm = static_cast<TitansNorm>(norm);
  memory.eps = config->rms_eps;

  MNEME_ASSIGN_OR_RETURN(config->chunk_tokens, reader.Int("memory_chunk_tokens", 1, kMaxTokens));
  MNEME_ASSIGN_OR_RETURN(const int mode, reader.Choice("read_mode", {"chunk", "token"}, "chunk"));
  config->token_mode = mode == 1;
  if (config->token_mode && config->IsContext()) {
    return absl::InvalidArgumentError(
        absl::StrCat(reader.Key("read_mode"), " is 'token', expected 'chunk' for variant mac"));
  }
  MNEME_ASSIGN_OR_RETURN(const int target, reader.Choice("decay_to", {"init", "zero"},
                                                         memory.depth > 1 ? "init" : "zero"));
  config->decay_to_init = target == 0;
  MNEME_ASSIGN_OR_RETURN(config->theta_max, reader.Float("theta_max", 0, 1e6, 1));
  MNEME_ASSIGN_OR_RETURN(config->eta_max, reader.Float("eta_max", 0, 1, 0.95));
  MNEME_ASSIGN_OR_RETURN(config->forget, reader.Bool("forget", true));
  MNEME_ASSIGN_OR_RETURN(config->gate_floor, reader.Float("gate_floor", 0, 0.999, 0.02));
  MNEME_ASSIGN_OR_RETURN(config->gradient_clip, reader.Float("gradient_clip", 0, 1e6, 1));
  MNEME_ASSIGN_OR_RETURN(config->conv_taps, reader.Int("conv_taps", 1, kMaxTaps, 4));
  return absl::OkStatus();
}

absl::Status ParseAttention(const Reader& reader, Config* config) {
  MNEME_ASSIGN_OR_RETURN(config->attention_heads,
                         reader.Int("num_attention_heads", 1, config->width));
  if (config->width % (2 * config->attention_heads) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(reader.Key("num_attention_heads"), " is ", config->attention_heads,
                     ", expected heads of the same even width in hidden_size ", config->width));
  }
  config->head_dim = config->width / config->attention_heads;
  if (config->IsContext()) {
    MNEME_ASSIGN_OR_RETURN(const int64_t segment, reader.Int("segment_tokens", 2, kMaxTokens));
    if (segment != config->chunk_tokens) {
      return absl::InvalidArgumentError(absl::StrCat(reader.Key("segment_tokens"), " is ", segment,
                                                     ", expected memory_chunk_tokens ",
                                                     config->chunk_tokens));
    }
  } else {
    MNEME_ASSIGN_OR_RETURN(config->window_tokens, reader.Int("window_tokens", 2, kMaxTokens));
  }
  MNEME_ASSIGN_OR_RETURN(config->persistent_tokens,
                         reader.Int("persistent_tokens", 0, kMaxTokens, 0));
  if (config->HasMix()) {
    MNEME_ASSIGN_OR_RETURN(const int mix,
                           reader.Choice("gate_mix", {"silu_silu", "sigmoid"}, "silu_silu"));
    config->sigmoid_mix = mix == 1;
  }
  return absl::OkStatus();
}

}  // namespace

bool Matches(const Checkpoint& checkpoint) {
  if (checkpoint.format() != Checkpoint::Format::kSafetensors) return false;
  const auto it = checkpoint.metadata().find("model_type");
  if (it == checkpoint.metadata().end()) return false;
  const auto* name = std::get_if<std::string>(&it->second);
  return name != nullptr && *name == "titans";
}

absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint) {
  const Reader reader(checkpoint);
  // The version first: another one may know other keys.
  MNEME_ASSIGN_OR_RETURN(const int64_t version, checkpoint.GetInt("mneme_config_version"));
  if (version != kVersion) {
    return absl::UnimplementedError(absl::StrCat(reader.Key("mneme_config_version"), " is ",
                                                 version, ", only ", kVersion, " is supported"));
  }
  Config config;
  MNEME_ASSIGN_OR_RETURN(const int variant,
                         reader.Choice("variant", {"lmm", "mac", "mag", "mal"}, std::nullopt));
  config.variant = static_cast<Variant>(variant);
  MNEME_RETURN_IF_ERROR(reader.RefuseUnknown(config.variant));

  MNEME_ASSIGN_OR_RETURN(config.vocab_size, reader.Int("vocab_size", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.width, reader.Int("hidden_size", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.num_layers, reader.Int("num_hidden_layers", 1, kMaxLayers));
  MNEME_ASSIGN_OR_RETURN(config.ffn_width, reader.Int("intermediate_size", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.rms_eps, reader.Float("rms_norm_eps", kTiny, 1, 1e-6));
  MNEME_ASSIGN_OR_RETURN(config.tied_embeddings, reader.Bool("tie_word_embeddings", false));
  MNEME_RETURN_IF_ERROR(ParseMemory(reader, &config));
  if (config.HasAttention()) MNEME_RETURN_IF_ERROR(ParseAttention(reader, &config));

  MNEME_ASSIGN_OR_RETURN(const int pairing,
                         reader.Choice("rope_pairing", {"half", "interleaved"}, "interleaved"));
  config.rope_layout = pairing == 0 ? RopeLayout::kHalf : RopeLayout::kInterleaved;
  MNEME_RETURN_IF_ERROR(reader.Float("rope_theta", kTiny, 1e12, 10000).status());
  MNEME_ASSIGN_OR_RETURN(const double base, checkpoint.GetFloat("rope_theta", 10000.0));
  config.rope_theta.resize(config.head_dim / 2);
  for (size_t i = 0; i < config.rope_theta.size(); ++i) {
    config.rope_theta[i] =
        std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim));
  }
  return config;
}

}  // namespace mneme::engine::titans
