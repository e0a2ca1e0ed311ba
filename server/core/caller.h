// Who calls, and what that allows. A server without a keys file knows nobody: then there is no
// Caller, and everybody has everything of tenant "default".
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace mneme::server {

// Each may do what those before it may, but for kMetrics: that is for scrapers alone.
enum class Role {
  kMetrics,  // reads /metrics
  kReader,   // looks up, lists, reads, tokenizes, scores; changes nothing
  kUser,     // everything in its tenant
  kAdmin,    // everything in every tenant
};

// Of a tenant, on one server.
struct TenantLimits {
  int64_t running = 64;           // calls that read or generate, at a time; 0: any number
  int64_t tokens_per_minute = 0;  // read and generated; 0: any number

  bool operator==(const TenantLimits&) const = default;
};

struct Caller {
  std::string id;       // of the key or certificate, as the keys file calls it
  std::string tenant;   // of short names
  TenantLimits limits;  // of the tenant
  Role role = Role::kReader;
  std::set<std::string> models;  // that it may use, "models/x"; empty: every one
  absl::Time not_after = absl::InfiniteFuture();

  bool MayUse(const std::string& model) const { return models.empty() || models.contains(model); }
};

// PERMISSION_DENIED ACCESS_DENIED. `text`: what the caller may not do, and what would help.
absl::Status AccessDenied(std::string text);

}  // namespace mneme::server
