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

// Of a tenant. 0 is any number, but of its weight.
struct TenantLimits {
  // On one server.
  int64_t running = 64;           // calls that read or generate, at a time
  int64_t tokens_per_minute = 0;  // read and generated
  int64_t weight = 1;             // its share where tenants wait for each other
  // In the store.
  int64_t sessions = 100'000;
  int64_t bytes = int64_t{64} << 30;  // of its sessions' stored_bytes, in sum

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
