#include "server/core/cancel_status.h"

#include "server/core/errors.h"

namespace mneme::server {

absl::Status CancelStatus(CallContext::Cancel cause) {
  using Cancel = CallContext::Cancel;
  switch (cause) {
    case Cancel::kNone:
      return absl::OkStatus();
    case Cancel::kClient:
    case Cancel::kRequested:
      return Error(absl::StatusCode::kCancelled, reason::kCancelled, "the call was cancelled");
    case Cancel::kDeadline:
      return Error(absl::StatusCode::kDeadlineExceeded, reason::kDeadlineExceeded,
                   "the call's deadline passed before it was done; allow more time");
    case Cancel::kShutdown:
      return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kDraining,
                             "the server is shutting down; repeat the call"),
                       absl::Seconds(1));
    case Cancel::kSlowConsumer:
      return Error(absl::StatusCode::kResourceExhausted, reason::kSlowConsumer,
                   "the client did not read its stream for too long; read faster");
    case Cancel::kTakenOver:
      return Error(absl::StatusCode::kAborted, reason::kStreamTakenOver,
                   "another call reads this generation now; a generation has one reader");
    case Cancel::kLeaseLost:
      return WithRetry(
          Error(absl::StatusCode::kAborted, reason::kLeaseLost,
                "the session could not be held against other servers; repeat the call"),
          absl::Milliseconds(500));
  }
  return absl::OkStatus();
}

const char* CancelName(CallContext::Cancel cause) {
  using Cancel = CallContext::Cancel;
  switch (cause) {
    case Cancel::kNone:
      return "none";
    case Cancel::kClient:
      return "client";
    case Cancel::kRequested:
      return "requested";
    case Cancel::kDeadline:
      return "deadline";
    case Cancel::kShutdown:
      return "shutdown";
    case Cancel::kSlowConsumer:
      return "slow_consumer";
    case Cancel::kTakenOver:
      return "taken_over";
    case Cancel::kLeaseLost:
      return "lease_lost";
  }
  return "none";
}

}  // namespace mneme::server
