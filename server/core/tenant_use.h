// What each tenant has under way, and what it may have: limits of the keys file, kept by this
// process alone (servers of one store do not add up what a tenant does on each).
//
// A call that reads or generates tokens has a share from its beginning to its end, waiting
// included. Tokens come out of a bucket that a minute fills: a tenant that has been quiet may spend
// a minute's worth at once. They are charged when they are read, so a call that runs is never cut:
// the bucket may be overdrawn, and the next call then waits until it has filled up again.
//
// Where calls wait for each other (state_cache.h), those of the tenant go first that has been
// served least: the tokens it has read and generated, over its weight. A tenant that comes back
// begins where the least served of those present is, or where the last one left off: time that it
// did not use is nothing to make up for. (Virtual token counters: Sheng et al. 2023,
// arXiv:2401.00588.) Thread-safe.
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

  // Of whom calls wait: "" on a server that knows nobody.
  static std::string WaitsFor(const CallContext& context) {
    return context.caller == nullptr ? "" : context.caller->tenant;
  }
  // Whoever has less goes first.
  double Served(const std::string& tenant) const;
  // A call of the tenant need not wait any more, and is going to read at least so many tokens: they
  // are served now, so that the next choice knows of them.
  void Serve(const std::string& tenant, int64_t tokens);

 private:
  struct Tenant {
    int64_t running = 0;
    double weight = 1;
    double served = 0;              // tokens over weight
    int64_t ahead = 0;              // of the tokens served, those not charged yet
    int64_t tokens_per_minute = 0;  // 0: no bucket
    double tokens = 0;              // in the bucket
    Clock::time_point filled;       // when that was so
  };

  // Where a tenant begins that comes back.
  double Level() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Metrics& metrics_;
  mutable Mutex mutex_;
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
  double left_off_ ABSL_GUARDED_BY(mutex_) = 0;  // served, of the tenant that left last
};

}  // namespace mneme::server
