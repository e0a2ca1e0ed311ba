#include "server/core/admin.h"

#include "server/core/limits.h"
#include "server/core/session_fields.h"
#include "server/core/session_file.h"

namespace mneme::server {
namespace {

v1::Limits LimitsOf(Parts& parts) {
  const Config& config = parts.config;
  v1::Limits out;
  out.set_max_request_bytes(config.limits.max_request_bytes);
  out.set_max_frame_bytes(kMaxFrameBytes);
  out.set_max_input_tokens(config.limits.max_input_tokens);
  out.set_max_output_tokens(config.limits.max_output_tokens);
  out.set_max_running_streams(config.limits.max_running_streams);
  out.set_max_queued_requests(config.limits.max_queued_requests);
  out.set_state_memory_bytes(parts.states.budget_bytes() + parts.prefixes.budget_bytes());
  out.set_prefix_memory_bytes(parts.prefixes.budget_bytes());
  out.set_max_unsent_tokens(config.limits.max_unsent_tokens);
  out.set_slow_client_timeout_ms(config.limits.slow_client_timeout_ms);
  out.set_max_page_size(kMaxPageSize);
  out.set_max_batch_sessions(kMaxBatchSessions);
  out.set_max_fork_children(kMaxForkChildren);
  out.set_max_kept_snapshots(kMaxKeptSnapshots);
  out.set_undelete_window_ms(config.sessions.undelete_window_ms);
  out.set_drain_timeout_ms(config.drain.timeout_ms);
  return out;
}

}  // namespace

v1::ServerInfo GetServerInfo(Parts& parts) {
  v1::ServerInfo out;
  out.set_name(parts.config.replica.name);
  out.set_version(MNEME_VERSION);
  SetTimestamp(parts.start_time_us, out.mutable_start_time());
  out.set_device(parts.models->DeviceDescription());
  out.set_store(parts.config.store.kind);
  out.set_shared_store(parts.sessions->leases() != nullptr);
  for (const auto& [name, model] : parts.models->models()) *out.add_models() = model->info;
  *out.mutable_limits() = LimitsOf(parts);
  out.set_session_file_format(kSessionFileFormat);
  out.set_oldest_session_file_format(kOldestSessionFileFormat);
  return out;
}

v1::Loads GetLoads(Parts& parts) {
  const auto value = [](prometheus::Gauge& gauge) { return static_cast<int64_t>(gauge.Value()); };
  v1::Loads out;
  out.set_running_requests(parts.states.running());
  out.set_waiting_requests(parts.states.waiting());
  out.set_queued_tokens(value(parts.metrics.queued_tokens));
  out.set_used_state_bytes(parts.states.used_bytes());
  out.set_state_memory_bytes(parts.states.budget_bytes());
  out.set_prefix_state_bytes(parts.prefixes.used_bytes());
  out.set_held_leases(value(parts.metrics.leases_held));
  out.set_drain_phase(static_cast<int32_t>(value(parts.metrics.drain_phase)));
  for (const auto& [name, model] : parts.models->models()) {
    auto& load = *out.add_models();
    load.set_model(name);
    size_t sequences = 0;
    for (const Replica& replica : model->replicas) sequences += replica.scheduler->num_sequences();
    load.set_sequences(static_cast<int64_t>(sequences));
  }
  return out;
}

}  // namespace mneme::server
