#include "engine/arch/config_reader.h"

#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {
namespace {

std::string Key(const Checkpoint& checkpoint, std::string_view key) {
  return absl::StrCat(checkpoint.path(), ": key '", absl::string_view(key.data(), key.size()), "'");
}

}  // namespace

absl::StatusOr<int64_t> GetCount(const Checkpoint& checkpoint, std::string_view key, int64_t high,
                                 std::optional<int64_t> fallback) {
  MNEME_ASSIGN_OR_RETURN(const int64_t value, checkpoint.GetInt(key, fallback));
  if (value >= 1 && value <= high) return value;
  return absl::InvalidArgumentError(
      absl::StrCat(Key(checkpoint, key), " is ", value, ", expected 1..", high));
}

absl::StatusOr<float> GetPositive(const Checkpoint& checkpoint, std::string_view key,
                                  double fallback, double high) {
  MNEME_ASSIGN_OR_RETURN(const double value, checkpoint.GetFloat(key, fallback));
  if (value >= std::numeric_limits<float>::min() && value <= high) return static_cast<float>(value);
  return absl::InvalidArgumentError(absl::StrCat(Key(checkpoint, key), " is ", value,
                                                 ", expected more than 0 and at most ", high));
}

absl::Status RequireBool(const Checkpoint& checkpoint, std::string_view key, bool expected) {
  MNEME_ASSIGN_OR_RETURN(const bool value, checkpoint.GetBool(key, expected));
  if (value == expected) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(Key(checkpoint, key), " is ",
                                               value ? "true" : "false", ", only ",
                                               expected ? "true" : "false", " is supported"));
}

absl::Status RequireAgreement(const Checkpoint& checkpoint, std::string_view key, int64_t value,
                              std::string_view source) {
  if (!checkpoint.Has(key)) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(const int64_t stated, checkpoint.GetInt(key));
  if (stated == value) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(Key(checkpoint, key), " is ", stated, ", but ",
                                                 std::string(source), " makes it ", value));
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

}  // namespace mneme::engine
