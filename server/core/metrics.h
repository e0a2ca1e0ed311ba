// Prometheus metrics of the server, `mneme_*`. Labels never carry session, key, user or request
// ids. Thread-safe.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <string>

#include "engine/core/mutex.h"

namespace mneme::server {

// Of states in one memory: tier "host", or "cuda:1" for a device's own.
struct TierMetrics {
  prometheus::Gauge& slots_used_ratio;  // mneme_state_slots_used_ratio
  prometheus::Gauge& state_bytes;
  prometheus::Gauge& prefix_state_bytes;
  prometheus::Gauge& sessions_running;   // sessions{state="running"}
  prometheus::Gauge& sessions_resident;  // sessions{state="active"}
  prometheus::Counter& evictions;
  prometheus::Histogram& restore;  // state_restore_seconds
};

// What is counted for one model: series with its label `model`.
struct ModelMetrics {
  ModelMetrics(prometheus::Registry& registry, const std::string& model);

  prometheus::Counter& input_tokens;
  prometheus::Counter& output_tokens;
  prometheus::Counter& reused_input_tokens;
  prometheus::Counter& recomputed_tokens;
  prometheus::Counter& state_not_finite;

  enum class Kind { kStateless, kWarm, kCold };  // where the state came from
  prometheus::Histogram& time_to_first_token(Kind kind) { return *ttft_[static_cast<int>(kind)]; }
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& time_per_output_token;
  prometheus::Histogram& request_duration;
  prometheus::Histogram& request_queue;
  prometheus::Histogram& request_prefill;
  prometheus::Histogram& request_decode;
  prometheus::Histogram& commit;
  prometheus::Histogram& cancel_latency;
  prometheus::Histogram& batch_size;

 private:
  prometheus::Histogram* ttft_[3];
};

// Those of the session store that can fail.
inline constexpr const char* kStoreOperations[] = {"get",    "get_chunk", "list", "totals",
                                                   "commit", "expired",   "probe"};

// Of the leases on sessions that servers of one store hold (lease_table.h).
inline constexpr const char* kLeaseEvents[] = {"taken", "taken_over", "released", "lost"};

// What can go wrong has its series from the start, at 0: an alert on an increase would miss the
// first error otherwise.
class Metrics {
 public:
  Metrics();

  std::shared_ptr<prometheus::Registry> registry() { return registry_; }
  // Made at the first call; lives as long as this.
  ModelMetrics& ForModel(const std::string& model);

  prometheus::Gauge& requests_running;
  prometheus::Gauge& requests_waiting;
  prometheus::Gauge& queued_tokens;
  // Adds the tier's series.
  TierMetrics Tier(const std::string& tier);
  // sessions{state=...,tier="store"}: an expired one is deleted once the sweeper has seen it
  enum class Stored { kActive, kDamaged, kDeleted };
  prometheus::Gauge& sessions_stored(Stored state) {
    return *sessions_stored_[static_cast<int>(state)];
  }
  prometheus::Gauge& orphan_sequences;
  prometheus::Gauge& generations_unattended;
  prometheus::Gauge& generations_kept_bytes;
  prometheus::Counter& streams_resumed;
  prometheus::Gauge& drain_phase;
  prometheus::Family<prometheus::Gauge>& model_info;

  prometheus::Gauge& leases_held;
  prometheus::Counter& version_conflicts;
  prometheus::Counter& checksum_failures;
  prometheus::Histogram& state_restore_store;
  prometheus::Histogram& state_save_store;
  void CountFinished(const std::string& finish_reason);
  void CountFailed(const std::string& code, const std::string& reason);
  void CountRejected(const std::string& reason);
  void CountCancelled(const std::string& cause);
  // `op`: one of kStoreOperations.
  void CountStoreError(const std::string& op);
  // `event`: one of kLeaseEvents.
  void CountLease(const std::string& event);

 private:
  explicit Metrics(std::shared_ptr<prometheus::Registry> registry);

  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Gauge* sessions_stored_[3];
  prometheus::Family<prometheus::Counter>& finished_;
  prometheus::Family<prometheus::Counter>& failed_;
  prometheus::Family<prometheus::Counter>& rejected_;
  prometheus::Family<prometheus::Counter>& cancelled_;
  prometheus::Family<prometheus::Counter>& store_errors_;
  prometheus::Family<prometheus::Counter>& lease_events_;
  Mutex mutex_;
  std::map<std::string, ModelMetrics> models_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
