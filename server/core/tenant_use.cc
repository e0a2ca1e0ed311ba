#include "server/core/tenant_use.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "server/core/errors.h"

namespace mneme::server {

absl::StatusOr<TenantUse::Share> TenantUse::Begin(const CallContext& context,
                                                  Clock::time_point now) {
  if (context.caller == nullptr) return Share();
  const std::string& name = context.caller->tenant;
  const TenantLimits& limits = context.caller->limits;
  const auto refuse = [&](const char* reason, const std::string& what, absl::Duration wait) {
    metrics_.CountRejected(reason);
    return WithRetry(WithQuota(Error(absl::StatusCode::kResourceExhausted, reason,
                                     absl::StrCat("tenant ", name, " ", what)),
                               absl::StrCat("tenants/", name), what),
                     wait);
  };
  MutexLock lock(&mutex_);
  Tenant& tenant = tenants_[name];
  if (tenant.tokens_per_minute != limits.tokens_per_minute) {  // the first call, or a reload
    tenant.tokens_per_minute = limits.tokens_per_minute;
    tenant.tokens = static_cast<double>(limits.tokens_per_minute);
    tenant.filled = now;
  }
  if (limits.running > 0 && tenant.running >= limits.running) {
    return refuse(reason::kQuotaRequests,
                  absl::StrCat("may have ", limits.running, " calls at a time"), absl::Seconds(1));
  }
  if (limits.tokens_per_minute > 0) {
    const auto most = static_cast<double>(limits.tokens_per_minute);
    const double per_second = most / 60;
    const std::chrono::duration<double> since = now - tenant.filled;
    tenant.tokens = std::min(most, tenant.tokens + since.count() * per_second);
    tenant.filled = now;
    if (tenant.tokens < 1) {
      return refuse(
          reason::kQuotaTokens,
          absl::StrCat("may read and generate ", limits.tokens_per_minute, " tokens a minute"),
          absl::Milliseconds(std::ceil((1 - tenant.tokens) / per_second * 1e3)));
    }
  }
  ++tenant.running;
  return Share(this, name);
}

void TenantUse::Share::Release() {
  TenantUse* use = std::exchange(use_, nullptr);
  if (use == nullptr) return;
  MutexLock lock(&use->mutex_);
  --use->tenants_.at(tenant_).running;
}

void TenantUse::Share::Charge(int64_t tokens) {
  if (use_ == nullptr) return;
  MutexLock lock(&use_->mutex_);
  use_->tenants_.at(tenant_).tokens -= static_cast<double>(tokens);
}

}  // namespace mneme::server
