#include "server/core/metrics.h"

#include "absl/status/status.h"
#include "mneme/v1/generation.pb.h"
#include "server/core/call_context.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Registry;
using Bounds = Histogram::BucketBoundaries;

// As vLLM's buckets, extended downwards.
const Bounds kTimeToFirst = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1,
                             2.5,   5,      10,    20,   40,    80,   160, 320,  640, 1280, 2560};
const Bounds kInterToken = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
                            0.4,   0.5,    0.75,  1,    2.5,   5,    7.5,   10,  20,   40,  80};
const Bounds kDuration = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,   20,
                          30,  40,  50,  60, 120, 240, 480, 960, 1920, 3840, 7680};
const Bounds kShort = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
                       0.05,   0.1,     0.25,   0.5,   1,      2.5,   5,    10};
const Bounds kBatch = {1, 2, 4, 8, 16, 32, 64, 128, 256};

Gauge& AddGauge(Registry& r, const char* name, const char* help,
                const prometheus::Labels& labels = {}) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(r).Add(labels);
}
Family<Counter>& CounterFamily(Registry& r, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(r);
}
Counter& AddCounter(Registry& r, const char* name, const char* help,
                    const prometheus::Labels& labels = {}) {
  return CounterFamily(r, name, help).Add(labels);
}
Histogram& AddHistogram(Registry& r, const char* name, const char* help, const Bounds& bounds,
                        const prometheus::Labels& labels = {}) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(r).Add(labels, bounds);
}

constexpr char kSessionsHelp[] =
    "Sessions, by where they are: tier store counts every stored session, the others states in "
    "memory (running calls and idle residents).";
constexpr char kRestoreHelp[] = "Time to get a session's state ready for a turn.";
constexpr char kTtftHelp[] =
    "Time from the arrival of a request to its first delta, by where the state came from.";

}  // namespace

ModelMetrics::ModelMetrics(Registry& registry, const std::string& model)
    : input_tokens(AddCounter(registry, "mneme_input_tokens_total", "Input tokens read.",
                              {{"model", model}})),
      output_tokens(AddCounter(registry, "mneme_output_tokens_total", "Tokens generated.",
                               {{"model", model}})),
      reused_input_tokens(AddCounter(registry, "mneme_reused_input_tokens_total",
                                     "Tokens that a turn found already read, in its session's "
                                     "state or another's that begins alike.",
                                     {{"model", model}})),
      recomputed_tokens(AddCounter(registry, "mneme_recomputed_tokens_total",
                                   "Tokens read once more.", {{"model", model}})),
      state_not_finite(AddCounter(registry, "mneme_state_not_finite_total",
                                  "Turns that produced NaN or infinite values.",
                                  {{"model", model}})),
      inter_token_latency(AddHistogram(registry, "mneme_inter_token_latency_seconds",
                                       "Gap between tokens of one stream.", kInterToken,
                                       {{"model", model}})),
      time_per_output_token(
          AddHistogram(registry, "mneme_request_time_per_output_token_seconds",
                       "Mean gap between tokens of a request, without the first token.",
                       kInterToken, {{"model", model}})),
      request_duration(AddHistogram(registry, "mneme_request_duration_seconds",
                                    "Duration of generation requests.", kDuration,
                                    {{"model", model}})),
      request_queue(AddHistogram(registry, "mneme_request_queue_seconds",
                                 "Time that generation requests waited to start.", kDuration,
                                 {{"model", model}})),
      request_prefill(AddHistogram(registry, "mneme_request_prefill_seconds",
                                   "Time that generation requests read their input.", kDuration,
                                   {{"model", model}})),
      request_decode(AddHistogram(registry, "mneme_request_decode_seconds",
                                  "Time that generation requests generated.", kDuration,
                                  {{"model", model}})),
      commit(AddHistogram(registry, "mneme_commit_seconds",
                          "Time of a commit, encoding and store included.", kShort,
                          {{"model", model}})),
      cancel_latency(AddHistogram(registry, "mneme_cancel_latency_seconds",
                                  "Time from cancellation to the end of compute.", kShort,
                                  {{"model", model}})),
      batch_size(AddHistogram(registry, "mneme_batch_size", "Sequences in one engine step.", kBatch,
                              {{"model", model}})) {
  static constexpr const char* kKinds[3] = {"stateless", "warm", "cold"};
  for (int i = 0; i < 3; ++i) {
    ttft_[i] = &AddHistogram(registry, "mneme_time_to_first_token_seconds", kTtftHelp, kTimeToFirst,
                             {{"kind", kKinds[i]}, {"model", model}});
  }
}

Metrics::Metrics() : Metrics(std::make_shared<Registry>()) {}

Metrics::Metrics(std::shared_ptr<Registry> registry)
    : requests_running(
          AddGauge(*registry, "mneme_requests_running", "Calls that hold a state slot.")),
      requests_waiting(
          AddGauge(*registry, "mneme_requests_waiting", "Calls that wait for a state slot.")),
      queued_tokens(AddGauge(*registry, "mneme_queued_tokens",
                             "Input tokens of calls that wait for a state slot.")),
      orphan_sequences(AddGauge(*registry, "mneme_orphan_sequences",
                                "Sequences in a batch that no call owns; must be 0.")),
      generations_unattended(AddGauge(*registry, "mneme_generations_unattended",
                                      "Turns that run although no stream reads them.")),
      generations_kept_bytes(AddGauge(*registry, "mneme_generations_kept_bytes",
                                      "Output of generations that have ended, kept to be read "
                                      "again.")),
      streams_resumed(AddCounter(*registry, "mneme_streams_resumed_total",
                                 "Streams that went on with a generation of another stream.")),
      drain_phase(AddGauge(*registry, "mneme_drain_phase",
                           "0: serving, 1: NOT_SERVING, 2: waiting for pre_stop_delay, 3: refusing "
                           "new work, 4: waiting for turns, 5: ending turns, 6: closing.")),
      model_info(prometheus::BuildGauge()
                     .Name("mneme_model_info")
                     .Help("A loaded model; always 1.")
                     .Register(*registry)),
      leases_held(AddGauge(*registry, "mneme_leases_held",
                           "Sessions that this server holds against others of its store.")),
      version_conflicts(AddCounter(*registry, "mneme_version_conflicts_total",
                                   "Calls refused because a version or etag did not match.")),
      checksum_failures(AddCounter(*registry, "mneme_checksum_failures_total",
                                   "Stored states that failed their checks.")),
      state_restore_store(AddHistogram(*registry, "mneme_state_restore_seconds", kRestoreHelp,
                                       kShort, {{"tier", "store"}})),
      state_save_store(AddHistogram(*registry, "mneme_state_save_seconds",
                                    "Time to encode a state for the store.", kShort,
                                    {{"tier", "store"}})),
      registry_(registry),
      finished_(CounterFamily(*registry, "mneme_requests_finished_total",
                              "Generation requests that ended OK, by finish reason.")),
      failed_(CounterFamily(*registry, "mneme_requests_failed_total",
                            "Calls that ended with an error, by code and reason.")),
      rejected_(CounterFamily(*registry, "mneme_admission_rejected_total",
                              "Calls that were refused because of load or drain.")),
      cancelled_(CounterFamily(*registry, "mneme_cancelled_total",
                               "Generation requests that were stopped early, by cause.")),
      store_errors_(
          CounterFamily(*registry, "mneme_store_errors_total", "Failed operations of the store.")),
      lease_events_(
          CounterFamily(*registry, "mneme_lease_events_total",
                        "Leases on sessions: taken, taken over from a server that did not "
                        "renew, released, lost to another server.")) {
  static constexpr const char* kStored[3] = {"active", "damaged", "deleted"};
  for (int i = 0; i < 3; ++i) {
    sessions_stored_[i] = &AddGauge(*registry, "mneme_sessions", kSessionsHelp,
                                    {{"state", kStored[i]}, {"tier", "store"}});
  }
  prometheus::BuildGauge()
      .Name("mneme_build_info")
      .Help("This build; always 1.")
      .Register(*registry)
      .Add({{"version", MNEME_VERSION}})
      .Set(1);

  for (const ReasonCode& known : kReasonCodes) {
    failed_.Add(
        {{"code", absl::StatusCodeToString(known.code)}, {"reason", std::string(known.reason)}});
  }
  for (const char* reason : {reason::kQueueFull, reason::kDraining, reason::kQuotaRequests,
                             reason::kQuotaTokens, reason::kQuotaSessions, reason::kQuotaBytes}) {
    rejected_.Add({{"reason", reason}});
  }
  using Cancel = CallContext::Cancel;
  for (const Cancel cause : {Cancel::kClient, Cancel::kRequested, Cancel::kDeadline,
                             Cancel::kShutdown, Cancel::kSlowConsumer, Cancel::kLeaseLost}) {
    cancelled_.Add({{"cause", CancelName(cause)}});
  }
  for (const char* op : kStoreOperations) store_errors_.Add({{"op", op}});
  for (const char* event : kLeaseEvents) lease_events_.Add({{"event", event}});
  const auto* finish_reasons = v1::FinishReason_descriptor();
  for (int i = 0; i < finish_reasons->value_count(); ++i) {
    if (finish_reasons->value(i)->number() == v1::FINISH_REASON_UNSPECIFIED) continue;
    finished_.Add({{"finish_reason", finish_reasons->value(i)->name()}});
  }
}

ModelMetrics& Metrics::ForModel(const std::string& model) {
  MutexLock lock(&mutex_);
  return models_.try_emplace(model, *registry_, model).first->second;
}

TierMetrics Metrics::Tier(const std::string& tier) {
  const prometheus::Labels labels = {{"tier", tier}};
  const auto sessions = [&](const char* state) -> Gauge& {
    return AddGauge(*registry_, "mneme_sessions", kSessionsHelp,
                    {{"state", state}, {"tier", tier}});
  };
  return {
      .slots_used_ratio = AddGauge(*registry_, "mneme_state_slots_used_ratio",
                                   "Share of the state memory that running calls hold.", labels),
      .state_bytes = AddGauge(*registry_, "mneme_state_bytes",
                              "Bytes of states in memory, running and idle.", labels),
      .prefix_state_bytes =
          AddGauge(*registry_, "mneme_prefix_state_bytes",
                   "Bytes of states that other conversations may begin with.", labels),
      .sessions_running = sessions("running"),
      .sessions_resident = sessions("active"),
      .evictions = AddCounter(*registry_, "mneme_evictions_total",
                              "Idle states that left memory for others.", labels),
      .restore =
          AddHistogram(*registry_, "mneme_state_restore_seconds", kRestoreHelp, kShort, labels),
  };
}

void Metrics::CountFinished(const std::string& finish_reason) {
  finished_.Add({{"finish_reason", finish_reason}}).Increment();
}
void Metrics::CountFailed(const std::string& code, const std::string& reason) {
  failed_.Add({{"code", code}, {"reason", reason}}).Increment();
}
void Metrics::CountRejected(const std::string& reason) {
  rejected_.Add({{"reason", reason}}).Increment();
}
void Metrics::CountCancelled(const std::string& cause) {
  cancelled_.Add({{"cause", cause}}).Increment();
}
void Metrics::CountStoreError(const std::string& op) {
  store_errors_.Add({{"op", op}}).Increment();
}
void Metrics::CountLease(const std::string& event) {
  lease_events_.Add({{"event", event}}).Increment();
}

}  // namespace mneme::server
