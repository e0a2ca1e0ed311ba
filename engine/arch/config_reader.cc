#include "engine/arch/config_reader.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {
namespace {

// Keys that say nothing about the mathematics.
constexpr std::string_view kNeutralKeys[] = {
    "model_type",   "architectures", "torch_dtype", "dtype",     "transformers_version",
    "use_cache",    "name",          "license",     "tokenizer", "add_bos_token",
    "bos_token_id", "eos_token_id",  "pad_token_id"};

bool Contains(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

std::string KeyName(const Checkpoint& checkpoint, std::string_view key) {
  return absl::StrCat(checkpoint.path(), ": key '", absl::string_view(key.data(), key.size()), "'");
}

absl::Status KeyOutOfRange(const Checkpoint& checkpoint, std::string_view key, int64_t value,
                           int64_t low, int64_t high) {
  return absl::InvalidArgumentError(
      absl::StrCat(KeyName(checkpoint, key), " is ", value, ", expected ", low, "..", high));
}

absl::StatusOr<int64_t> GetIntIn(const Checkpoint& checkpoint, std::string_view key, int64_t low,
                                 int64_t high, std::optional<int64_t> fallback) {
  MNEME_ASSIGN_OR_RETURN(const int64_t value, checkpoint.GetInt(key, fallback));
  if (value < low || value > high) return KeyOutOfRange(checkpoint, key, value, low, high);
  return value;
}

absl::StatusOr<double> GetPositiveDouble(const Checkpoint& checkpoint, std::string_view key,
                                         std::optional<double> fallback, double high) {
  MNEME_ASSIGN_OR_RETURN(const double value, checkpoint.GetFloat(key, fallback));
  if (!(value >= std::numeric_limits<float>::min()) || !(value <= high)) {
    return absl::InvalidArgumentError(absl::StrCat(KeyName(checkpoint, key), " is ", value,
                                                   ", expected more than 0 and at most ", high));
  }
  return value;
}

absl::StatusOr<int64_t> GetCount(const Checkpoint& checkpoint, std::string_view key, int64_t high,
                                 std::optional<int64_t> fallback) {
  return GetIntIn(checkpoint, key, 1, high, fallback);
}

absl::StatusOr<float> GetPositive(const Checkpoint& checkpoint, std::string_view key,
                                  double fallback, double high) {
  MNEME_ASSIGN_OR_RETURN(const double value, GetPositiveDouble(checkpoint, key, fallback, high));
  return static_cast<float>(value);
}

absl::Status RequireBool(const Checkpoint& checkpoint, std::string_view key, bool expected) {
  MNEME_ASSIGN_OR_RETURN(const bool value, checkpoint.GetBool(key, expected));
  if (value == expected) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(KeyName(checkpoint, key), " is ",
                                               value ? "true" : "false", ", only ",
                                               expected ? "true" : "false", " is supported"));
}

absl::Status RequireAgreement(const Checkpoint& checkpoint, std::string_view key, int64_t value,
                              std::string_view source) {
  if (!checkpoint.Has(key)) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(const int64_t stated, checkpoint.GetInt(key));
  if (stated == value) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(KeyName(checkpoint, key), " is ", stated, ", but ",
                                                 std::string(source), " makes it ", value));
}

absl::StatusOr<int> FindChoice(const Checkpoint& checkpoint, std::string_view key,
                               std::string_view value, std::span<const std::string_view> choices) {
  for (size_t i = 0; i < choices.size(); ++i) {
    if (choices[i] == value) return static_cast<int>(i);
  }
  const std::vector<std::string> names(choices.begin(), choices.end());
  return absl::InvalidArgumentError(absl::StrCat(KeyName(checkpoint, key), " is '",
                                                 std::string(value), "', expected '",
                                                 absl::StrJoin(names, "' or '"), "'"));
}

absl::StatusOr<int> GetChoice(const Checkpoint& checkpoint, std::string_view key,
                              std::optional<std::string> fallback,
                              std::initializer_list<std::string_view> choices) {
  MNEME_ASSIGN_OR_RETURN(const std::string value, checkpoint.GetString(key, std::move(fallback)));
  return FindChoice(checkpoint, key, value, {choices.begin(), choices.size()});
}

bool HasModelType(const Checkpoint& checkpoint, std::initializer_list<std::string_view> types) {
  if (checkpoint.format() != Checkpoint::Format::kSafetensors) return false;
  const auto it = checkpoint.metadata().find("model_type");
  if (it == checkpoint.metadata().end()) return false;
  const auto* type = std::get_if<std::string>(&it->second);
  return type != nullptr && std::find(types.begin(), types.end(), *type) != types.end();
}

absl::Status RequireModelType(const Checkpoint& checkpoint, std::string_view type) {
  MNEME_ASSIGN_OR_RETURN(const std::string stated, checkpoint.GetString("model_type"));
  if (stated == type) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(checkpoint.path(), ": model_type '", stated, "' is not supported"));
}

absl::Status RequireConfigVersion(const Checkpoint& checkpoint, int64_t version) {
  MNEME_ASSIGN_OR_RETURN(const int64_t found, checkpoint.GetInt("mneme_config_version"));
  if (found == version) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(KeyName(checkpoint, "mneme_config_version"), " is ",
                                               found, ", only ", version, " is supported"));
}

absl::Status RefuseUnknownKeys(const Checkpoint& checkpoint, std::string_view architecture,
                               std::initializer_list<std::span<const std::string_view>> known) {
  for (const auto& [key, value] : checkpoint.metadata()) {
    if (Contains(kNeutralKeys, key)) continue;
    if (std::any_of(known.begin(), known.end(),
                    [&key = key](const auto& names) { return Contains(names, key); })) {
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat(KeyName(checkpoint, key), " is not part of the ",
                                                   std::string(architecture), " architecture"));
  }
  return absl::OkStatus();
}

std::vector<double> RopeTheta(double base, int64_t rotary_dim) {
  std::vector<double> theta(rotary_dim / 2);
  for (size_t j = 0; j < theta.size(); ++j) {
    theta[j] = std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(rotary_dim));
  }
  return theta;
}

}  // namespace mneme::engine
