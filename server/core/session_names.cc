#include "server/core/session_names.h"

#include <openssl/rand.h>

#include <array>
#include <cstring>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "engine/core/status_macros.h"
#include "memstore/state_store.h"
#include "server/core/errors.h"
#include "server/core/limits.h"
#include "server/core/resource_id.h"

namespace mneme::server {
namespace {

absl::string_view View(std::string_view s) { return {s.data(), s.size()}; }

void RandomBytes(void* out, size_t n) {
  // Fails only when the system has no entropy source at all.
  if (RAND_bytes(static_cast<unsigned char*>(out), static_cast<int>(n)) != 1) std::abort();
}

absl::Status Malformed(std::string_view field, std::string_view form) {
  FieldErrors errors;
  errors.Add(field, absl::StrCat("must be an id, or have the form ", View(form)));
  return errors.ToStatus();
}

// Splits "tenants/{t}[/<kind>/{id}[/<kind>/{id}]]", or what follows the first kind of id, and
// checks tenant and ids.
absl::StatusOr<std::vector<std::string>> ParseName(std::string_view name, std::string_view field,
                                                   std::string_view tenant,
                                                   std::vector<std::string_view> kinds,
                                                   std::string_view form) {
  std::vector<std::string> parts = absl::StrSplit(View(name), '/');
  const bool is_tenant = kinds.size() == 1;
  if (is_tenant && parts.size() == 1) {
    parts = {"tenants", std::string(name.empty() ? tenant : name)};
  } else if (!is_tenant && parts.size() + 3 == 2 * kinds.size()) {
    parts.insert(parts.begin(), {"tenants", std::string(tenant), std::string(kinds[1])});
  }
  if (name.size() > 512 || parts.size() != 2 * kinds.size()) return Malformed(field, form);
  std::vector<std::string> ids;
  for (size_t i = 0; i < kinds.size(); ++i) {
    if (parts[2 * i] != kinds[i] || !IsValidId(parts[2 * i + 1])) return Malformed(field, form);
    ids.push_back(parts[2 * i + 1]);
  }
  if (ids[0] != tenant) return OtherTenant(tenant);
  return ids;
}

std::string Checksum(std::string_view scope, std::string_view position) {
  const auto hash = memstore::HashChunk(
      absl::StrCat("mneme page ", scope.size(), ":", View(scope), View(position)));
  return std::string(reinterpret_cast<const char*>(hash.data()), 12);
}

}  // namespace

absl::Status OtherTenant(std::string_view tenant) {
  return Error(absl::StatusCode::kPermissionDenied, reason::kAccessDenied,
               "the name belongs to a tenant that this caller may not use",
               {{"tenant", std::string(tenant)}});
}

namespace {

std::string MakeId(std::string prefix) {
  static constexpr char kLetters[] = "abcdefghijklmnopqrstuvwxyz234567";
  std::array<uint8_t, 20> random;
  RandomBytes(random.data(), random.size());
  for (uint8_t r : random) prefix += kLetters[r & 31];
  return prefix;
}

}  // namespace

std::string MakeSessionId() { return MakeId("s-"); }
std::string MakeSnapshotId() { return MakeId("c-"); }

std::string MakeUid() {
  std::array<uint8_t, 16> r;
  RandomBytes(r.data(), r.size());
  r[6] = (r[6] & 0x0f) | 0x40;
  r[8] = (r[8] & 0x3f) | 0x80;
  const std::string hex =
      absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(r.data()), r.size()));
  const absl::string_view digits = hex;
  return absl::StrCat(digits.substr(0, 8), "-", digits.substr(8, 4), "-", digits.substr(12, 4), "-",
                      digits.substr(16, 4), "-", digits.substr(20));
}

uint64_t RandomU64() {
  uint64_t value;
  RandomBytes(&value, sizeof(value));
  return value;
}

std::string SessionName::str() const {
  return absl::StrCat("tenants/", tenant, "/sessions/", session);
}
std::string SnapshotName::str() const {
  return absl::StrCat(session.str(), "/snapshots/", snapshot);
}

absl::StatusOr<SessionName> ParseSessionName(std::string_view name, std::string_view field,
                                             std::string_view tenant) {
  MNEME_ASSIGN_OR_RETURN(auto ids, ParseName(name, field, tenant, {"tenants", "sessions"},
                                             "tenants/{tenant}/sessions/{session}"));
  return SessionName{ids[0], ids[1]};
}

absl::StatusOr<SnapshotName> ParseSnapshotName(std::string_view name, std::string_view field,
                                               std::string_view tenant) {
  const std::string slashed = absl::StrReplaceAll(View(name), {{"@", "/snapshots/"}});
  MNEME_ASSIGN_OR_RETURN(auto ids,
                         ParseName(slashed, field, tenant, {"tenants", "sessions", "snapshots"},
                                   "tenants/{tenant}/sessions/{session}/snapshots/{snapshot}"));
  return SnapshotName{{ids[0], ids[1]}, ids[2]};
}

absl::Status CheckTenantName(std::string_view name, std::string_view field,
                             std::string_view tenant) {
  return ParseName(name, field, tenant, {"tenants"}, "tenants/{tenant}").status();
}

absl::StatusOr<std::string> ParseGenerationName(std::string_view name, std::string_view field,
                                                std::string_view tenant) {
  MNEME_ASSIGN_OR_RETURN(auto ids, ParseName(name, field, tenant, {"tenants", "generations"},
                                             "tenants/{tenant}/generations/{generation}"));
  return absl::StrCat("tenants/", ids[0], "/generations/", ids[1]);
}

absl::StatusOr<SourceName> ParseSourceName(std::string_view name, std::string_view field,
                                           std::string_view tenant) {
  SourceName source;
  if (name.find('@') != std::string_view::npos ||
      name.find("/snapshots/") != std::string_view::npos) {
    MNEME_ASSIGN_OR_RETURN(source.snapshot, ParseSnapshotName(name, field, tenant));
    source.session = source.snapshot->session;
  } else {
    MNEME_ASSIGN_OR_RETURN(source.session, ParseSessionName(name, field, tenant));
  }
  return source;
}

std::string FullModelName(std::string_view name) {
  return name.starts_with("models/") ? std::string(name) : absl::StrCat("models/", View(name));
}

std::string MakePageToken(std::string_view scope, std::string_view position) {
  return absl::WebSafeBase64Escape(absl::StrCat(Checksum(scope, position), View(position)));
}

absl::StatusOr<std::string> ReadPageToken(std::string_view scope, std::string_view token) {
  std::string bytes;
  if (token.size() <= 1024 && absl::WebSafeBase64Unescape(View(token), &bytes) &&
      bytes.size() > 12) {
    std::string position = bytes.substr(12);
    if (Checksum(scope, position) == bytes.substr(0, 12)) return position;
  }
  FieldErrors errors;
  errors.Add("page_token", "must come from the page before, of a call with the same fields",
             reason::kPageTokenInvalid);
  return errors.ToStatus();
}

absl::StatusOr<int> PageSize(int32_t requested) {
  if (requested < 0) {
    FieldErrors errors;
    errors.Add("page_size", absl::StrCat("must not be negative, is ", requested));
    return errors.ToStatus();
  }
  if (requested == 0) return 50;
  return std::min(requested, kMaxPageSize);
}

}  // namespace mneme::server
