// Resource names: how they are written, read and made.
//
// Clients may leave out what a server of one tenant knows anyway. Answers have full names.
//   model       m                     models/m
//   session     s                     tenants/{the caller's}/sessions/s
//   snapshot    s@c, s/snapshots/c    tenants/{the caller's}/sessions/s/snapshots/c
//   generation  g                     tenants/{the caller's}/generations/g
//   tenant      "", t                 tenants/{the caller's}, tenants/t
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace mneme::server {

// "s-" and 20 random base32 letters.
std::string MakeSessionId();
// "c-" and the same.
std::string MakeSnapshotId();
// A random UUID (version 4).
std::string MakeUid();
uint64_t RandomU64();

struct SessionName {
  std::string tenant, session;
  std::string str() const;
};
struct SnapshotName {
  SessionName session;
  std::string snapshot;
  std::string str() const;
};

// Full or short. INVALID_ARGUMENT FIELD_INVALID naming `field` if it does not have the form;
// PERMISSION_DENIED ACCESS_DENIED if the name's tenant is not `tenant`, the caller's, whether it
// exists or not.
absl::StatusOr<SessionName> ParseSessionName(std::string_view name, std::string_view field,
                                             std::string_view tenant);
absl::StatusOr<SnapshotName> ParseSnapshotName(std::string_view name, std::string_view field,
                                               std::string_view tenant);
// ACCESS_DENIED to a name; the metadata has `tenant`, the caller's own.
absl::Status OtherTenant(std::string_view tenant);
absl::Status CheckTenantName(std::string_view name, std::string_view field,
                             std::string_view tenant);
// Returns the full name.
absl::StatusOr<std::string> ParseGenerationName(std::string_view name, std::string_view field,
                                                std::string_view tenant);
// A session, or one of its snapshots.
struct SourceName {
  SessionName session;
  std::optional<SnapshotName> snapshot;
};
absl::StatusOr<SourceName> ParseSourceName(std::string_view name, std::string_view field,
                                           std::string_view tenant);
// Whether there is such a model is for the registry to say.
std::string FullModelName(std::string_view name);

// A page token holds where to go on; it is bound to `scope` (tenant, method and filter).
std::string MakePageToken(std::string_view scope, std::string_view position);
// INVALID_ARGUMENT PAGE_TOKEN_INVALID if it was made for another scope or altered.
absl::StatusOr<std::string> ReadPageToken(std::string_view scope, std::string_view token);
// 0 means 50, above 1000 means 1000. INVALID_ARGUMENT if negative.
absl::StatusOr<int> PageSize(int32_t requested);

}  // namespace mneme::server
