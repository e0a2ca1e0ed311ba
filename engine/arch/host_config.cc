#include "engine/arch/host_config.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {
namespace {

constexpr int64_t kVersion = 1;

constexpr std::string_view kKeys[] = {
    "mneme_config_version", "vocab_size",   "hidden_size",  "num_hidden_layers",
    "num_attention_heads",  "head_dim",     "rms_norm_eps", "intermediate_size",
    "num_key_value_heads",  "rope_pairing", "rope_theta",   "tie_word_embeddings"};

}  // namespace

absl::StatusOr<HostConfig> ParseHostConfig(const Checkpoint& checkpoint,
                                           std::string_view architecture,
                                           std::span<const std::string_view> own_keys) {
  // The version first: another one may know other keys.
  MNEME_RETURN_IF_ERROR(RequireConfigVersion(checkpoint, kVersion));
  MNEME_RETURN_IF_ERROR(RefuseUnknownKeys(checkpoint, architecture, {kKeys, own_keys}));
  HostConfig config;
  MNEME_ASSIGN_OR_RETURN(config.vocab_size, GetIntIn(checkpoint, "vocab_size", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.width, GetIntIn(checkpoint, "hidden_size", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.num_layers,
                         GetIntIn(checkpoint, "num_hidden_layers", 1, kMaxLayers));
  MNEME_ASSIGN_OR_RETURN(config.heads,
                         GetIntIn(checkpoint, "num_attention_heads", 1, kMaxHeadWidth));
  MNEME_ASSIGN_OR_RETURN(config.ffn_width, GetIntIn(checkpoint, "intermediate_size", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(
      config.kv_heads, GetIntIn(checkpoint, "num_key_value_heads", 1, config.heads, config.heads));
  if (config.heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(KeyName(checkpoint, "num_key_value_heads"), " is ", config.kv_heads,
                     ", expected a divisor of num_attention_heads ", config.heads));
  }
  std::optional<int64_t> quotient;
  if (config.width % config.heads == 0) quotient = config.width / config.heads;
  MNEME_ASSIGN_OR_RETURN(
      config.head_dim, GetIntIn(checkpoint, "head_dim", 1, kMaxHeadWidth / config.heads, quotient));
  if (config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(KeyName(checkpoint, "head_dim"), " is ",
                                                   config.head_dim, ", expected an even number"));
  }
  MNEME_ASSIGN_OR_RETURN(const double eps,
                         GetPositiveDouble(checkpoint, "rms_norm_eps", 1e-6, 1.0));
  config.rms_eps = static_cast<float>(eps);
  MNEME_ASSIGN_OR_RETURN(const int pairing,
                         GetChoice(checkpoint, "rope_pairing", "half", {"half", "interleaved"}));
  config.rope_layout = pairing == 0 ? RopeLayout::kHalf : RopeLayout::kInterleaved;
  MNEME_ASSIGN_OR_RETURN(config.tied_embeddings, checkpoint.GetBool("tie_word_embeddings", false));
  MNEME_ASSIGN_OR_RETURN(const double base,
                         GetPositiveDouble(checkpoint, "rope_theta", 10000.0, 1e12));
  config.theta = RopeTheta(base, config.head_dim);
  return config;
}

}  // namespace mneme::engine
