// Typed, range-checked reading of a configuration. The file is hostile: every number is bounded
// before it sizes anything, and every failure names the key and what was expected.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine {

// Far above any real model, far below what could overflow a product of a few of them.
inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxWidth = int64_t{1} << 24;
inline constexpr int64_t kMaxHeadWidth = int64_t{1} << 20;  // heads times width of a head

// "file: key 'name'", the beginning of every message.
std::string KeyName(const Checkpoint& checkpoint, std::string_view key);

absl::Status KeyOutOfRange(const Checkpoint& checkpoint, std::string_view key, int64_t value,
                           int64_t low, int64_t high);
absl::StatusOr<int64_t> GetIntIn(const Checkpoint& checkpoint, std::string_view key, int64_t low,
                                 int64_t high, std::optional<int64_t> fallback = {});
// In (0, high], and no smaller than f32 can hold: one that became zero would be another model.
absl::StatusOr<double> GetPositiveDouble(const Checkpoint& checkpoint, std::string_view key,
                                         std::optional<double> fallback, double high);
// An integer in [1, high].
absl::StatusOr<int64_t> GetCount(const Checkpoint& checkpoint, std::string_view key, int64_t high,
                                 std::optional<int64_t> fallback = {});
// A number in (0, high] that f32 can hold: one that became zero would be another model.
absl::StatusOr<float> GetPositive(const Checkpoint& checkpoint, std::string_view key,
                                  double fallback, double high);
// The key is absent or has this value.
absl::Status RequireBool(const Checkpoint& checkpoint, std::string_view key, bool expected);
// The key is absent or says what `source` (another key, a tensor) makes it.
absl::Status RequireAgreement(const Checkpoint& checkpoint, std::string_view key, int64_t value,
                              std::string_view source);
// Index of `value`, found under `key`, in `choices`.
absl::StatusOr<int> FindChoice(const Checkpoint& checkpoint, std::string_view key,
                               std::string_view value, std::span<const std::string_view> choices);
// Index of the key's value in `choices`.
absl::StatusOr<int> GetChoice(const Checkpoint& checkpoint, std::string_view key,
                              std::optional<std::string> fallback,
                              std::initializer_list<std::string_view> choices);

// Whether config.json's model_type is one of `types`.
bool HasModelType(const Checkpoint& checkpoint, std::initializer_list<std::string_view> types);
// UNIMPLEMENTED, by its name, if it is another than `type`.
absl::Status RequireModelType(const Checkpoint& checkpoint, std::string_view type);
// `mneme_config_version` is there and is `version`.
absl::Status RequireConfigVersion(const Checkpoint& checkpoint, int64_t version);
// Every key is one of `known` or of those that any of our configurations may have.
absl::Status RefuseUnknownKeys(const Checkpoint& checkpoint, std::string_view architecture,
                               std::initializer_list<std::span<const std::string_view>> known);

// Radians per position of each pair: base^(-2j / rotary_dim), in double whatever the file's type.
std::vector<double> RopeTheta(double base, int64_t rotary_dim);

}  // namespace mneme::engine
