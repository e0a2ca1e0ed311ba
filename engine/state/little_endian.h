// Writing and reading the little-endian layouts of docs/state_format.md. Internal to the readers
// and writers of those formats.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {

static_assert(std::endian::native == std::endian::little, "formats are little-endian");

inline constexpr size_t kMaxNameBytes = 256;

template <typename T>
void AppendLittle(std::string& out, T value) {
  static_assert(std::is_integral_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Length as u16, then the bytes; at most kMaxNameBytes of them.
inline void AppendName(std::string& out, std::string_view name) {
  AppendLittle(out, static_cast<uint16_t>(name.size()));
  out += name;
}

// Reads from the front of `bytes`, which must outlive it. INVALID_ARGUMENT "`what`: field: why";
// nothing is allocated beyond what is there.
class LittleEndianCursor {
 public:
  LittleEndianCursor(std::string_view what, std::string_view bytes) : what_(what), rest_(bytes) {}

  template <typename T>
  absl::StatusOr<T> Read(std::string_view field) {
    if (rest_.size() < sizeof(T)) return Corrupt(field, "ends inside this field");
    T value;
    std::memcpy(&value, rest_.data(), sizeof(T));
    rest_.remove_prefix(sizeof(T));
    return value;
  }
  absl::StatusOr<std::string> Bytes(size_t count, std::string_view field) {
    if (rest_.size() < count) return Corrupt(field, "ends inside this field");
    std::string value(rest_.substr(0, count));
    rest_.remove_prefix(count);
    return value;
  }
  absl::StatusOr<std::string> Name(std::string_view field) {
    MNEME_ASSIGN_OR_RETURN(const uint16_t size, Read<uint16_t>(field));
    if (size > kMaxNameBytes) return Corrupt(field, "longer than 256 bytes");
    return Bytes(size, field);
  }
  size_t remaining() const { return rest_.size(); }

  absl::Status Corrupt(std::string_view field, std::string_view why) const {
    const auto text = [](std::string_view s) { return absl::string_view(s.data(), s.size()); };
    return absl::InvalidArgumentError(
        absl::StrCat(text(what_), ": ", text(field), ": ", text(why)));
  }

 private:
  const std::string_view what_;
  std::string_view rest_;
};

}  // namespace mneme::engine
