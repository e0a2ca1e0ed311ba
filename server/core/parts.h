// What the calls of this server work on. Made once by server_core.cc; everything in it is
// thread-safe.
#pragma once

#include <atomic>
#include <memory>

#include "server/core/call_registry.h"
#include "server/core/config.h"
#include "server/core/generation_table.h"
#include "server/core/metrics.h"
#include "server/core/model_registry.h"
#include "server/core/prefix_cache.h"
#include "server/core/request_memory.h"
#include "server/core/session_store.h"
#include "server/core/state_cache.h"
#include "server/core/tenant_storage.h"
#include "server/core/tenant_use.h"
#include "server/core/writer_table.h"

namespace mneme::server {

struct Parts {
  Config config;
  Metrics metrics;
  std::unique_ptr<ModelRegistry> models;
  std::unique_ptr<SessionStore> sessions;
  std::unique_ptr<TenantStorage> storage;
  TenantUse tenants{metrics};
  StateCaches states;
  PrefixCaches prefixes;
  std::unique_ptr<RequestMemory> requests;
  WriterTable writers;
  CallRegistry calls;
  std::atomic<bool> draining{false};
  const int64_t start_time_us = NowMicros();
  std::unique_ptr<GenerationTable> generations;  // last: their turns use the others
};

// Of WriterTable and StateCache.
inline std::string CacheKey(const SessionName& name) { return name.tenant + "/" + name.session; }

// UNAVAILABLE DRAINING once the server refuses new work.
absl::Status CheckNotDraining(Parts& parts);

// The session's single writer, among the calls of this server and, where the store is shared,
// against other servers.
struct Writer {
  WriterTable::Hold hold;
  LeaseTable::Lease lease;

  void Release() {
    lease.Release();
    hold.Release();
  }
};

// ABORTED SESSION_BUSY with current_version and RetryInfo if another one writes and `wait` is
// false, or too many wait; with `owner`, if that is on another server. The context's cancellation
// otherwise.
absl::StatusOr<Writer> TakeWriter(Parts& parts, CallContext& context, const SessionName& name,
                                  bool wait);

// Returns after the sequences of ended calls have been counted: mneme_orphan_sequences.
void PublishOrphans(Parts& parts);

}  // namespace mneme::server
