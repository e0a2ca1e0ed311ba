// What each tenant has under way, and what it may have: limits of the keys file, kept by this
// process alone (servers of one store do not add up what a tenant does on each).
//
// A call that reads or generates tokens has a share from its beginning to its end, waiting
// included. Tokens come out of a bucket that a minute fills: a tenant that has been quiet may spend
// a minute's worth at once. They are charged when they are read, so a call that runs is never cut:
// the bucket may be overdrawn, and the next call then waits until it has filled up again.
// Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/core/mutex.h"
#include "server/core/call_context.h"
#include "server/core/metrics.h"

namespace mneme::server {

class TenantUse {
 public:
  using Clock = CallContext::Clock;

  explicit TenantUse(Metrics& metrics) : metrics_(metrics) {}

  // Given back when destroyed.
  class Share {
   public:
    Share() = default;
    Share(Share&& other) noexcept
        : use_(std::exchange(other.use_, nullptr)), tenant_(std::move(other.tenant_)) {}
    Share& operator=(Share&& other) noexcept {
      Release();
      use_ = std::exchange(other.use_, nullptr);
      tenant_ = std::move(other.tenant_);
      return *this;
    }
    ~Share() { Release(); }
    void Release();
    // Of tokens that were read or generated.
    void Charge(int64_t tokens);

   private:
    friend class TenantUse;
    Share(TenantUse* use, std::string tenant) : use_(use), tenant_(std::move(tenant)) {}
    TenantUse* use_ = nullptr;
    std::string tenant_;
  };

  // For a call of the caller's tenant, whosever names it uses. RESOURCE_EXHAUSTED QUOTA_REQUESTS or
  // QUOTA_TOKENS, with QuotaFailure and RetryInfo. An empty share on a server that knows nobody.
  absl::StatusOr<Share> Begin(const CallContext& context, Clock::time_point now = Clock::now());

 private:
  struct Tenant {
    int64_t running = 0;
    int64_t tokens_per_minute = 0;  // 0: no bucket
    double tokens = 0;              // in the bucket
    Clock::time_point filled;       // when that was so
  };

  Metrics& metrics_;
  Mutex mutex_;
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
