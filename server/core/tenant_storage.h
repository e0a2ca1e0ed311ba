// What each tenant keeps in the store, and what it may keep: limits of the keys file.
//
// Whatever is stored counts: deleted sessions until they are purged, and of each session its
// stored_bytes, so that what several share counts for each. The figures are the store's totals. Of
// a shared store they are looked up once a second at most, and again before anybody is refused;
// what this server has added meanwhile comes on top. So servers of one store may together exceed a
// limit by what they add within a second, and none refuses because of a figure that is old.
//
// What a call will add is claimed before it does so. A turn cannot tell: it is refused where it
// begins, if its tenant has all that it may have, and may then take what it needs, so that what was
// generated is never lost. Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/core/mutex.h"
#include "server/core/call_context.h"
#include "server/core/metrics.h"
#include "server/core/session_store.h"

namespace mneme::server {

class TenantStorage {
 public:
  // `store` must outlive this, this its claims.
  TenantStorage(SessionStore& store, Metrics& metrics);

  // Until it is destroyed: what it was made for is stored by then, or never will be.
  class Claim {
   public:
    Claim() = default;
    Claim(Claim&& other) noexcept
        : storage_(std::exchange(other.storage_, nullptr)),
          tenant_(std::move(other.tenant_)),
          use_(other.use_) {}
    Claim& operator=(Claim&& other) noexcept {
      Release();
      storage_ = std::exchange(other.storage_, nullptr);
      tenant_ = std::move(other.tenant_);
      use_ = other.use_;
      return *this;
    }
    ~Claim() { Release(); }
    void Release();

   private:
    friend class TenantStorage;
    Claim(TenantStorage* storage, std::string tenant, StoredUse use)
        : storage_(storage), tenant_(std::move(tenant)), use_(use) {}
    TenantStorage* storage_ = nullptr;
    std::string tenant_;
    StoredUse use_;
  };

  // Room for that many more in the tenant of the call's names. RESOURCE_EXHAUSTED QUOTA_SESSIONS or
  // QUOTA_BYTES, with QuotaFailure; an error of the store. An empty claim for an admin of another
  // tenant, who is not held to its limits, and on a server that knows nobody.
  absl::StatusOr<Claim> Take(const CallContext& context, StoredUse more);
  // Whether there is any room for bytes at all.
  absl::Status CheckBytes(const CallContext& context) {
    return Take(context, {.bytes = 1}).status();
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Tenant {
    StoredUse stored;  // as of `read`
    StoredUse added;   // by this server since
    StoredUse claimed;
    Clock::time_point read = Clock::time_point::min();
  };

  bool Knows(const Tenant& tenant) const;
  absl::Status Check(const std::string& name, const TenantLimits& limits, const Tenant& tenant,
                     StoredUse more) const;

  SessionStore& store_;
  Metrics& metrics_;
  Mutex mutex_;
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
