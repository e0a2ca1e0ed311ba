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
  if (tenant.running == 0) tenant.served = std::max(tenant.served, Level());
  tenant.weight = static_cast<double>(std::max<int64_t>(limits.weight, 1));
  ++tenant.running;
  return Share(this, name);
}

double TenantUse::Level() const {
  double least = 0;
  bool any = false;
  for (const auto& [name, tenant] : tenants_) {
    if (tenant.running == 0) continue;
    least = any ? std::min(least, tenant.served) : tenant.served;
    any = true;
  }
  return any ? least : left_off_;
}

double TenantUse::Served(const std::string& tenant) const {
  MutexLock lock(&mutex_);
  const auto found = tenants_.find(tenant);
  return found == tenants_.end() ? 0 : found->second.served;
}

void TenantUse::Serve(const std::string& name, int64_t tokens) {
  MutexLock lock(&mutex_);
  const auto found = tenants_.find(name);
  if (found == tenants_.end()) return;
  Tenant& tenant = found->second;
  // A call without tokens is not for nothing either.
  tenant.served += static_cast<double>(std::max<int64_t>(tokens, 1)) / tenant.weight;
  tenant.ahead += tokens;
}

void TenantUse::Share::Release() {
  TenantUse* use = std::exchange(use_, nullptr);
  if (use == nullptr) return;
  MutexLock lock(&use->mutex_);
  Tenant& tenant = use->tenants_.at(tenant_);
  if (--tenant.running > 0) return;
  // What calls that were cancelled have not read was not served after all.
  tenant.served -= static_cast<double>(tenant.ahead) / tenant.weight;
  tenant.ahead = 0;
  use->left_off_ = tenant.served;
}

void TenantUse::Share::Charge(int64_t tokens) {
  if (use_ == nullptr) return;
  MutexLock lock(&use_->mutex_);
  Tenant& tenant = use_->tenants_.at(tenant_);
  tenant.tokens -= static_cast<double>(tokens);
  const int64_t known = std::min(tokens, tenant.ahead);
  tenant.ahead -= known;
  tenant.served += static_cast<double>(tokens - known) / tenant.weight;
}

}  // namespace mneme::server
