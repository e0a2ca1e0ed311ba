#include "engine/checkpoint/sampling_hints.h"

#include <algorithm>
#include <string_view>
#include <variant>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/strict_json.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {
namespace {

constexpr std::string_view kGenerationConfig = "generation_config.json";
constexpr size_t kMaxConfigBytes = size_t{1} << 20;
// "The whole context" is written -1; a window of more than this is none that anybody means.
constexpr double kLongestWindow = 8192;

struct Name {
  const char* in_file;
  const char* option;
};
// As llama.cpp's converter writes them.
constexpr Name kGgufNames[] = {{"general.sampling.temp", "temperature"},
                               {"general.sampling.top_p", "top_p"},
                               {"general.sampling.top_k", "top_k"},
                               {"general.sampling.min_p", "min_p"},
                               {"general.sampling.penalty_repeat", "repetition_penalty"},
                               {"general.sampling.penalty_last_n", "penalty_window_tokens"}};
constexpr Name kJsonNames[] = {{"temperature", "temperature"},
                               {"top_p", "top_p"},
                               {"top_k", "top_k"},
                               {"min_p", "min_p"},
                               {"repetition_penalty", "repetition_penalty"}};

absl::Status NoNumber(const std::string& path, const char* name) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", name, " must be a number"));
}

absl::StatusOr<SamplingHints> FromGguf(const Checkpoint& checkpoint) {
  SamplingHints hints;
  for (const auto& [key, option] : kGgufNames) {
    const auto it = checkpoint.metadata().find(key);
    if (it == checkpoint.metadata().end()) continue;
    if (const auto* real = std::get_if<double>(&it->second)) {
      hints[option] = *real;
    } else if (const auto* whole = std::get_if<int64_t>(&it->second)) {
      hints[option] = static_cast<double>(*whole);
    } else {
      return NoNumber(checkpoint.path(), key);
    }
  }
  return hints;
}

absl::StatusOr<SamplingHints> FromGenerationConfig(const Checkpoint& checkpoint) {
  SamplingHints hints;
  const auto text = checkpoint.ReadSideFile(kGenerationConfig, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return hints;
  if (!text.ok()) return text.status();
  const std::string path = absl::StrCat(checkpoint.path(), "/", std::string(kGenerationConfig));
  MNEME_ASSIGN_OR_RETURN(const nlohmann::json config, ParseStrictJson(*text, path));
  if (!config.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": must be an object"));
  }
  for (const auto& [name, option] : kJsonNames) {
    const auto it = config.find(name);
    if (it == config.end() || it->is_null()) continue;
    if (!it->is_number()) return NoNumber(path, name);
    hints[option] = it->get<double>();
  }
  // Its other values are then for whoever samples nevertheless.
  if (const auto it = config.find("do_sample"); it != config.end() && *it == false) {
    hints["temperature"] = 0;
  }
  return hints;
}

}  // namespace

absl::StatusOr<SamplingHints> ReadSamplingHints(const Checkpoint& checkpoint) {
  const bool gguf = checkpoint.format() == Checkpoint::Format::kGguf;
  MNEME_ASSIGN_OR_RETURN(SamplingHints hints,
                         gguf ? FromGguf(checkpoint) : FromGenerationConfig(checkpoint));
  // Everywhere else "off" is 0 or below.
  if (const auto it = hints.find("top_k"); it != hints.end()) {
    it->second = std::max(it->second, 0.0);
  }
  if (const auto it = hints.find("penalty_window_tokens"); it != hints.end()) {
    it->second = it->second < 0 ? kLongestWindow : std::min(it->second, kLongestWindow);
  }
  return hints;
}

}  // namespace mneme::engine
