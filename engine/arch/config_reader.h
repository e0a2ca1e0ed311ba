// Numbers and options of a checkpoint's configuration within what an architecture can serve. Every
// failure names the file, the key and what was expected.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine {

// Far above any real model, far below what could overflow a product of a few of them.
inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxWidth = int64_t{1} << 24;

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
// Whether config.json's model_type is one of `types`.
bool HasModelType(const Checkpoint& checkpoint, std::initializer_list<std::string_view> types);

// UNIMPLEMENTED, by its name, if it is another than `type`.
absl::Status RequireModelType(const Checkpoint& checkpoint, std::string_view type);

}  // namespace mneme::engine
