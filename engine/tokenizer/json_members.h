// Members of untrusted JSON values, where another type counts as absent.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace mneme::engine {

// The member `key`, or null if `object` is no object or has no such member.
inline const nlohmann::json& Member(const nlohmann::json& object, const char* key) {
  static const nlohmann::json* const kNull = new nlohmann::json();
  if (!object.is_object()) return *kNull;
  const auto it = object.find(key);
  return it == object.end() ? *kNull : *it;
}

inline std::string StringMember(const nlohmann::json& object, const char* key) {
  const nlohmann::json& value = Member(object, key);
  return value.is_string() ? value.get<std::string>() : std::string();
}

inline bool BoolMember(const nlohmann::json& object, const char* key, bool fallback) {
  const nlohmann::json& value = Member(object, key);
  return value.is_boolean() ? value.get<bool>() : fallback;
}

}  // namespace mneme::engine
