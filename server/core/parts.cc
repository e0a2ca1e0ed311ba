#include "server/core/parts.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"

namespace mneme::server {

absl::Status CheckNotDraining(Parts& parts) {
  if (!parts.draining) return absl::OkStatus();
  parts.metrics.CountRejected(reason::kDraining);
  return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kDraining,
                         "the server is shutting down; repeat the call"),
                   absl::Seconds(1));
}

namespace {

// How often a call that waits for another server looks whether it may go on.
constexpr auto kLookAgain = std::chrono::milliseconds(100);

absl::Status Busy(Parts& parts, const SessionName& name, const char* text,
                  const std::string& owner = "") {
  MNEME_ASSIGN_OR_RETURN(const SessionRecord record, parts.sessions->Get(name));
  std::map<std::string, std::string> metadata = {
      {"current_version", absl::StrCat(record.data.head().version())}};
  if (!owner.empty()) metadata["owner"] = owner;
  return WithRetry(WithResource(Error(absl::StatusCode::kAborted, reason::kSessionBusy, text,
                                      std::move(metadata)),
                                "mneme.v1.Session", name.str()),
                   absl::Milliseconds(500));
}

constexpr char kOtherTurn[] =
    "another turn runs on this session; repeat the call, or set conflict_policy to QUEUE";

}  // namespace

absl::StatusOr<Writer> TakeWriter(Parts& parts, CallContext& context, const SessionName& name,
                                  bool wait) {
  auto result = parts.writers.Acquire(CacheKey(name), context, wait);
  switch (result.outcome) {
    case WriterTable::Outcome::kHeld:
      break;
    case WriterTable::Outcome::kCancelled:
      return CancelStatus(context.cancelled());
    case WriterTable::Outcome::kBusy:
      return Busy(parts, name, kOtherTurn);
    case WriterTable::Outcome::kQueueFull:
      return Busy(parts, name,
                  "too many turns wait for this session already; repeat the call later");
  }
  Writer writer{.hold = std::move(result.hold)};
  while (parts.sessions->leases() != nullptr) {
    auto lease = parts.sessions->TakeLease(name, context);
    if (lease.ok()) {
      writer.lease = *std::move(lease);
      break;
    }
    const auto owner = lease.status().GetPayload(LeaseTable::kOwnerPayload);
    if (!owner.has_value()) return lease.status();
    if (!wait) return Busy(parts, name, kOtherTurn, std::string(*owner));
    MNEME_RETURN_IF_ERROR(CancelStatus(context.cancelled()));
    std::this_thread::sleep_for(kLookAgain);
  }
  return writer;
}

void PublishOrphans(Parts& parts) {
  // A call waits for its sequence to be removed before it ends, so more sequences than running
  // calls means that one was left behind. Counted before and after, since turns come and go.
  const int64_t before = parts.states.running();
  int64_t sequences = 0;
  for (const auto& [name, model] : parts.models->models()) {
    for (const Replica& replica : model->replicas) sequences += replica.scheduler->num_sequences();
  }
  const int64_t running = std::max(before, parts.states.running());
  parts.metrics.orphan_sequences.Set(
      static_cast<double>(std::max<int64_t>(0, sequences - running)));
}

}  // namespace mneme::server
