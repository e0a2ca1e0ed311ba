// The last part of a resource's name: what models, sessions and tenants may be called.
#pragma once

#include <algorithm>
#include <string_view>

namespace mneme::server {

// ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$
inline bool IsValidId(std::string_view id) {
  const auto lower = [](char c) { return c >= 'a' && c <= 'z'; };
  const auto alnum = [&](char c) { return lower(c) || (c >= '0' && c <= '9'); };
  return !id.empty() && id.size() <= 63 && lower(id.front()) && alnum(id.back()) &&
         std::all_of(id.begin(), id.end(), [&](char c) { return alnum(c) || c == '-'; });
}

}  // namespace mneme::server
