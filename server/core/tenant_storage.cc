#include "server/core/tenant_storage.h"

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

constexpr std::chrono::seconds kKnown{1};

absl::Status Full(const std::string& tenant, const char* reason, const char* what, int64_t limit,
                  int64_t used) {
  const std::string may = absl::StrCat("may keep ", limit, " ", what);
  return WithQuota(Error(absl::StatusCode::kResourceExhausted, reason,
                         absl::StrCat("tenant ", tenant, " ", may, " and has ", used,
                                      "; purge sessions: deleted ones count until then"),
                         {{"limit", absl::StrCat(limit)}, {"used", absl::StrCat(used)}}),
                   absl::StrCat("tenants/", tenant), may);
}

}  // namespace

TenantStorage::TenantStorage(SessionStore& store, Metrics& metrics)
    : store_(store), metrics_(metrics) {}

// The totals of a store that is this server's own cost nothing, and are exact.
bool TenantStorage::Knows(const Tenant& tenant) const {
  return store_.leases() != nullptr && tenant.read != Clock::time_point::min() &&
         Clock::now() - tenant.read < kKnown;
}

absl::Status TenantStorage::Check(const std::string& name, const TenantLimits& limits,
                                  const Tenant& tenant, StoredUse more) const {
  const StoredUse used = tenant.stored + tenant.added + tenant.claimed;
  if (more.sessions > 0 && limits.sessions > 0 && more.sessions > limits.sessions - used.sessions) {
    return Full(name, reason::kQuotaSessions, "sessions", limits.sessions, used.sessions);
  }
  if (more.bytes > 0 && limits.bytes > 0 && more.bytes > limits.bytes - used.bytes) {
    return Full(name, reason::kQuotaBytes, "bytes", limits.bytes, used.bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<TenantStorage::Claim> TenantStorage::Take(const CallContext& context,
                                                         StoredUse more) {
  const std::string& name = context.tenant;
  if (context.caller == nullptr || context.caller->tenant != name) return Claim();
  const TenantLimits& limits = context.caller->limits;
  {
    MutexLock lock(&mutex_);
    Tenant& tenant = tenants_[name];
    if (Knows(tenant) && Check(name, limits, tenant, more).ok()) {
      tenant.claimed += more;
      return Claim(this, name, more);
    }
  }
  MNEME_ASSIGN_OR_RETURN(const StoredUse stored, store_.UseOf(name));
  MutexLock lock(&mutex_);
  Tenant& tenant = tenants_[name];
  tenant.stored = stored;
  tenant.added = {};
  tenant.read = Clock::now();
  if (absl::Status full = Check(name, limits, tenant, more); !full.ok()) {
    metrics_.CountRejected(ReasonOf(full));
    return full;
  }
  tenant.claimed += more;
  return Claim(this, name, more);
}

void TenantStorage::Claim::Release() {
  TenantStorage* storage = std::exchange(storage_, nullptr);
  if (storage == nullptr) return;
  MutexLock lock(&storage->mutex_);
  Tenant& tenant = storage->tenants_.at(tenant_);
  tenant.claimed += {-use_.sessions, -use_.bytes};
  tenant.added += use_;
}

}  // namespace mneme::server
