#include "server/core/parts.h"

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

absl::StatusOr<WriterTable::Lease> TakeWriter(Parts& parts, CallContext& context,
                                              const SessionName& name, bool wait) {
  auto result = parts.writers.Acquire(CacheKey(name), context, wait);
  if (result.outcome == WriterTable::Outcome::kHeld) return std::move(result.lease);
  if (result.outcome == WriterTable::Outcome::kCancelled) {
    return CancelStatus(context.cancelled());
  }
  MNEME_ASSIGN_OR_RETURN(const SessionRecord record, parts.sessions->Get(name));
  const char* text = result.outcome == WriterTable::Outcome::kBusy
                         ? "another turn runs on this session; repeat the call, or set "
                           "conflict_policy to QUEUE"
                         : "too many turns wait for this session already; repeat the call later";
  return WithRetry(
      WithResource(Error(absl::StatusCode::kAborted, reason::kSessionBusy, text,
                         {{"current_version", absl::StrCat(record.data.head().version())}}),
                   "mneme.v1.Session", name.str()),
      absl::Milliseconds(500));
}

void PublishOrphans(Parts& parts) {
  // A call waits for its sequence to be removed before it ends, so more sequences than running
  // calls means that one was left behind.
  int64_t sequences = 0;
  for (const auto& [name, model] : parts.models->models()) {
    sequences += model->scheduler->num_sequences();
  }
  parts.metrics.orphan_sequences.Set(
      static_cast<double>(std::max<int64_t>(0, sequences - parts.states->running())));
}

}  // namespace mneme::server
