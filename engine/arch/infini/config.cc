#include "engine/arch/infini/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::infini {
namespace {

// Far above any real model, far below what could overflow a product of a few of them.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxWidth = int64_t{1} << 24;
constexpr int64_t kMaxHeadWidth = int64_t{1} << 20;  // H * dk, H * dv
constexpr int64_t kMaxSegment = int64_t{1} << 24;
constexpr int64_t kVersion = 1;

constexpr std::string_view kKeys[] = {
    "model_type", "mneme_config_version", "vocab_size", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "intermediate_size", "num_key_value_heads", "head_dim", "rms_norm_eps",
    "rope_theta", "rope_pairing", "tie_word_embeddings", "segment_tokens", "memory_update",
    "value_head_dim", "memory_eps", "first_segment",
    // Not used by the mathematics.
    "architectures", "torch_dtype", "dtype", "transformers_version", "use_cache", "name", "license",
    "tokenizer", "add_bos_token", "bos_token_id", "eos_token_id", "pad_token_id"};

std::string Key(const Checkpoint& checkpoint, std::string_view key) {
  return absl::StrCat(checkpoint.path(), ": key '", absl::string_view(key.data(), key.size()), "'");
}

absl::StatusOr<int64_t> GetIntIn(const Checkpoint& checkpoint, std::string_view key, int64_t high,
                                 std::optional<int64_t> fallback = {}) {
  MNEME_ASSIGN_OR_RETURN(const int64_t value, checkpoint.GetInt(key, fallback));
  if (value < 1 || value > high) {
    return absl::InvalidArgumentError(
        absl::StrCat(Key(checkpoint, key), " is ", value, ", expected 1..", high));
  }
  return value;
}

absl::StatusOr<double> GetPositive(const Checkpoint& checkpoint, std::string_view key,
                                   double fallback, double high) {
  MNEME_ASSIGN_OR_RETURN(const double value, checkpoint.GetFloat(key, fallback));
  // A number that f32 cannot hold would be zero in the mathematics.
  if (!(value >= std::numeric_limits<float>::min()) || !(value <= high)) {
    return absl::InvalidArgumentError(absl::StrCat(Key(checkpoint, key), " is ", value,
                                                   ", expected more than 0 and at most ", high));
  }
  return value;
}

// Index of the key's value in `choices`.
absl::StatusOr<int> GetChoice(const Checkpoint& checkpoint, std::string_view key,
                              std::optional<std::string> fallback, const char* first,
                              const char* second) {
  MNEME_ASSIGN_OR_RETURN(const std::string value, checkpoint.GetString(key, fallback));
  if (value == first) return 0;
  if (value == second) return 1;
  return absl::InvalidArgumentError(absl::StrCat(Key(checkpoint, key), " is '", value,
                                                 "', expected '", first, "' or '", second, "'"));
}

}  // namespace

bool Matches(const Checkpoint& checkpoint) {
  if (checkpoint.format() != Checkpoint::Format::kSafetensors) return false;
  auto it = checkpoint.metadata().find("model_type");
  const auto* name =
      it == checkpoint.metadata().end() ? nullptr : std::get_if<std::string>(&it->second);
  return name != nullptr && *name == "infini";
}

absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint) {
  // The version first: another one may know other keys.
  MNEME_ASSIGN_OR_RETURN(const int64_t version, checkpoint.GetInt("mneme_config_version"));
  if (version != kVersion) {
    return absl::UnimplementedError(absl::StrCat(Key(checkpoint, "mneme_config_version"), " is ",
                                                 version, ", only ", kVersion, " is supported"));
  }
  for (const auto& [key, value] : checkpoint.metadata()) {
    if (std::find(std::begin(kKeys), std::end(kKeys), key) == std::end(kKeys)) {
      return absl::InvalidArgumentError(
          absl::StrCat(Key(checkpoint, key), " is not part of the infini architecture"));
    }
  }

  Config config;
  MNEME_ASSIGN_OR_RETURN(config.vocab_size, GetIntIn(checkpoint, "vocab_size", kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.width, GetIntIn(checkpoint, "hidden_size", kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.num_layers, GetIntIn(checkpoint, "num_hidden_layers", kMaxLayers));
  MNEME_ASSIGN_OR_RETURN(config.heads, GetIntIn(checkpoint, "num_attention_heads", kMaxHeadWidth));
  MNEME_ASSIGN_OR_RETURN(config.ffn_width, GetIntIn(checkpoint, "intermediate_size", kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.kv_heads,
                         GetIntIn(checkpoint, "num_key_value_heads", config.heads, config.heads));
  if (config.heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(Key(checkpoint, "num_key_value_heads"), " is ", config.kv_heads,
                     ", expected a divisor of num_attention_heads ", config.heads));
  }
  std::optional<int64_t> quotient;
  if (config.width % config.heads == 0) quotient = config.width / config.heads;
  const int64_t widest = kMaxHeadWidth / config.heads;
  MNEME_ASSIGN_OR_RETURN(config.head_dim, GetIntIn(checkpoint, "head_dim", widest, quotient));
  if (config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(Key(checkpoint, "head_dim"), " is ",
                                                   config.head_dim, ", expected an even number"));
  }
  MNEME_ASSIGN_OR_RETURN(config.value_head_dim,
                         GetIntIn(checkpoint, "value_head_dim", widest, config.head_dim));
  MNEME_ASSIGN_OR_RETURN(config.segment_tokens,
                         GetIntIn(checkpoint, "segment_tokens", kMaxSegment));
  MNEME_ASSIGN_OR_RETURN(const double rms_eps, GetPositive(checkpoint, "rms_norm_eps", 1e-6, 1.0));
  MNEME_ASSIGN_OR_RETURN(const double memory_eps, GetPositive(checkpoint, "memory_eps", 1e-6, 1e6));
  config.rms_eps = static_cast<float>(rms_eps);
  config.memory_eps = static_cast<float>(memory_eps);
  MNEME_ASSIGN_OR_RETURN(const int update, GetChoice(checkpoint, "memory_update", std::nullopt,
                                                     "linear", "linear_delta"));
  config.delta = update == 1;
  MNEME_ASSIGN_OR_RETURN(
      const int first, GetChoice(checkpoint, "first_segment", "gated_zero", "gated_zero", "local"));
  config.first_segment_local = first == 1;
  MNEME_ASSIGN_OR_RETURN(const int pairing,
                         GetChoice(checkpoint, "rope_pairing", "half", "half", "interleaved"));
  config.rope_layout = pairing == 0 ? RopeLayout::kHalf : RopeLayout::kInterleaved;
  MNEME_ASSIGN_OR_RETURN(config.tied_embeddings, checkpoint.GetBool("tie_word_embeddings", false));
  MNEME_ASSIGN_OR_RETURN(const double base, GetPositive(checkpoint, "rope_theta", 10000.0, 1e12));
  config.theta.resize(config.head_dim / 2);
  for (size_t j = 0; j < config.theta.size(); ++j) {
    config.theta[j] =
        std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(config.head_dim));
  }
  return config;
}

}  // namespace mneme::engine::infini
