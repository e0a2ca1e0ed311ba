#include "engine/arch/llama/pangu_options.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::llama {
namespace {

// The paper tries up to 4 branches and one shortcut.
constexpr int64_t kMaxBranches = 64;

constexpr std::string_view kKeys[] = {"siaf_n",    "siaf_mode", "siaf_act", "aug_count",
                                      "aug_ratio", "aug_input", "aug_act",  "aug_bias"};

constexpr std::string_view kActivationNames[] = {"silu", "gelu_erf", "gelu_tanh", "relu", "tanh"};
constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGeluErf,
                                       Activation::kGeluTanh, Activation::kRelu, Activation::kTanh};

// Other keys are Llama's, whose files carry many that nothing reads. These are ours to know.
absl::Status RefuseUnknownOptions(const Checkpoint& checkpoint) {
  for (const auto& [key, value] : checkpoint.metadata()) {
    if (!absl::StartsWith(key, "siaf_") && !absl::StartsWith(key, "aug_")) continue;
    if (std::find(std::begin(kKeys), std::end(kKeys), key) != std::end(kKeys)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(KeyName(checkpoint, key), " is no option of PanGu-pi"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Activation> FindActivation(const Checkpoint& checkpoint, std::string_view key,
                                          std::string_view name) {
  MNEME_ASSIGN_OR_RETURN(const int index, FindChoice(checkpoint, key, name, kActivationNames));
  return kActivations[index];
}

// One name for all n branches, or an array of n.
absl::StatusOr<std::vector<Activation>> GetSeries(const Checkpoint& checkpoint, int64_t n) {
  constexpr std::string_view kKey = "siaf_act";
  std::vector<std::string> names;
  const auto it = checkpoint.metadata().find(kKey);
  const auto* list = it == checkpoint.metadata().end()
                         ? nullptr
                         : std::get_if<std::vector<std::string>>(&it->second);
  if (list != nullptr) {
    names = *list;
    if (static_cast<int64_t>(names.size()) != n) {
      return absl::InvalidArgumentError(absl::StrCat(
          KeyName(checkpoint, kKey), " has ", names.size(), " values, expected siaf_n, ", n));
    }
  } else {
    MNEME_ASSIGN_OR_RETURN(const std::string name, checkpoint.GetString(kKey, "silu"));
    names.assign(n, name);
  }
  std::vector<Activation> series;
  for (const std::string& name : names) {
    MNEME_ASSIGN_OR_RETURN(const Activation activation, FindActivation(checkpoint, kKey, name));
    series.push_back(activation);
  }
  return series;
}

}  // namespace

absl::StatusOr<PanguOptions> ParsePanguOptions(const Checkpoint& checkpoint, int64_t width) {
  MNEME_RETURN_IF_ERROR(RefuseUnknownOptions(checkpoint));
  PanguOptions options;
  MNEME_ASSIGN_OR_RETURN(const int64_t n, GetIntIn(checkpoint, "siaf_n", 1, kMaxBranches, 1));
  MNEME_ASSIGN_OR_RETURN(options.series, GetSeries(checkpoint, n));
  MNEME_ASSIGN_OR_RETURN(const int mode,
                         GetChoice(checkpoint, "siaf_mode", "scaled", {"scaled", "projected"}));
  options.projected = mode == 1;

  MNEME_ASSIGN_OR_RETURN(options.shortcuts, GetIntIn(checkpoint, "aug_count", 0, kMaxBranches, 0));
  MNEME_ASSIGN_OR_RETURN(const int64_t ratio, GetIntIn(checkpoint, "aug_ratio", 1, kMaxWidth, 32));
  if (options.shortcuts > 0) {
    if (width % ratio != 0) {
      return absl::InvalidArgumentError(absl::StrCat(KeyName(checkpoint, "aug_ratio"), " is ",
                                                     ratio, ", expected a divisor of hidden_size ",
                                                     width));
    }
    options.shortcut_width = width / ratio;
  }
  MNEME_ASSIGN_OR_RETURN(const int input,
                         GetChoice(checkpoint, "aug_input", "normed", {"normed", "raw"}));
  options.shortcut_reads_residual = input == 1;
  MNEME_ASSIGN_OR_RETURN(const std::string activation, checkpoint.GetString("aug_act", "gelu_erf"));
  MNEME_ASSIGN_OR_RETURN(options.shortcut_activation,
                         FindActivation(checkpoint, "aug_act", activation));
  MNEME_ASSIGN_OR_RETURN(options.shortcut_bias, checkpoint.GetBool("aug_bias", false));
  return options;
}

}  // namespace mneme::engine::llama
