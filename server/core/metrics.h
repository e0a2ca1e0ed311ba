// Prometheus metrics of the server, `mneme_*`. Labels never carry session, key, user or request
// ids. Thread-safe.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>
#include <vector>

namespace mneme::server {

// Of states in one memory: tier "host" or that of a device.
struct TierMetrics {
  prometheus::Gauge& slots_used_ratio;  // mneme_state_slots_used_ratio
  prometheus::Gauge& state_bytes;
  prometheus::Gauge& sessions_running;   // sessions{state="running"}
  prometheus::Gauge& sessions_resident;  // sessions{state="active"}
  prometheus::Counter& evictions;
  prometheus::Histogram& restore;  // state_restore_seconds
};

class Metrics {
 public:
  Metrics();

  std::shared_ptr<prometheus::Registry> registry() { return registry_; }

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
  prometheus::Gauge& drain_phase;
  prometheus::Family<prometheus::Gauge>& model_info;

  prometheus::Counter& input_tokens;
  prometheus::Counter& output_tokens;
  prometheus::Counter& reused_input_tokens;
  prometheus::Counter& recomputed_tokens;
  prometheus::Counter& version_conflicts;
  prometheus::Counter& state_not_finite;
  prometheus::Counter& checksum_failures;
  void CountFinished(const std::string& finish_reason);
  void CountFailed(const std::string& code, const std::string& reason);
  void CountRejected(const std::string& reason);
  void CountCancelled(const std::string& cause);
  void CountStoreError(const std::string& op);

  enum class Kind { kStateless, kWarm, kCold };  // where the state came from
  prometheus::Histogram& time_to_first_token(Kind kind) { return *ttft_[static_cast<int>(kind)]; }
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& time_per_output_token;
  prometheus::Histogram& request_duration;
  prometheus::Histogram& request_queue;
  prometheus::Histogram& request_prefill;
  prometheus::Histogram& request_decode;
  prometheus::Histogram& state_restore_store;
  prometheus::Histogram& state_save_store;
  prometheus::Histogram& commit;
  prometheus::Histogram& cancel_latency;
  prometheus::Histogram& batch_size;

 private:
  explicit Metrics(std::shared_ptr<prometheus::Registry> registry);

  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Histogram* ttft_[3];
  prometheus::Gauge* sessions_stored_[3];
  prometheus::Family<prometheus::Counter>& finished_;
  prometheus::Family<prometheus::Counter>& failed_;
  prometheus::Family<prometheus::Counter>& rejected_;
  prometheus::Family<prometheus::Counter>& cancelled_;
  prometheus::Family<prometheus::Counter>& store_errors_;
};

}  // namespace mneme::server
