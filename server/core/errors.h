// Errors as this API promises them: a code, a reason, the offending field, and what to do.
//
// An error is an absl::Status whose payloads are google.rpc details, keyed by their type URL
// ("type.googleapis.com/google.rpc.ErrorInfo"). server/rpc puts them into grpc-status-details-bin
// as they are. Message text: what, which field, what was expected, what to do; never a path, user
// text or tokens.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace mneme::server {

// ErrorInfo.reason values. docs/errors.md says what each means and what to do;
// tests/server/rpc/error_table_test.cc provokes each and shows what comes with it.
namespace reason {
inline constexpr char kFieldInvalid[] = "FIELD_INVALID";
inline constexpr char kFieldOutOfRange[] = "FIELD_OUT_OF_RANGE";
inline constexpr char kFieldRequired[] = "FIELD_REQUIRED";
inline constexpr char kPageTokenInvalid[] = "PAGE_TOKEN_INVALID";
inline constexpr char kRequestIdReused[] = "REQUEST_ID_REUSED";
inline constexpr char kResumeTokenInvalid[] = "RESUME_TOKEN_INVALID";
inline constexpr char kInputTooLong[] = "INPUT_TOO_LONG";
inline constexpr char kContextFull[] = "CONTEXT_FULL";
inline constexpr char kPositionOutOfRange[] = "POSITION_OUT_OF_RANGE";
inline constexpr char kIngestGap[] = "INGEST_GAP";
inline constexpr char kCredentialsInvalid[] = "CREDENTIALS_INVALID";
inline constexpr char kAccessDenied[] = "ACCESS_DENIED";
inline constexpr char kSessionNotFound[] = "SESSION_NOT_FOUND";
inline constexpr char kSnapshotNotFound[] = "SNAPSHOT_NOT_FOUND";
inline constexpr char kModelNotFound[] = "MODEL_NOT_FOUND";
inline constexpr char kGenerationNotFound[] = "GENERATION_NOT_FOUND";
inline constexpr char kSessionExists[] = "SESSION_EXISTS";
inline constexpr char kSnapshotExists[] = "SNAPSHOT_EXISTS";
inline constexpr char kSessionBusy[] = "SESSION_BUSY";
inline constexpr char kLeaseLost[] = "LEASE_LOST";
inline constexpr char kStreamTakenOver[] = "STREAM_TAKEN_OVER";
inline constexpr char kStreamDiverged[] = "STREAM_DIVERGED";
inline constexpr char kVersionMismatch[] = "VERSION_MISMATCH";
inline constexpr char kVersionRegressed[] = "VERSION_REGRESSED";
inline constexpr char kModelNotLoaded[] = "MODEL_NOT_LOADED";
inline constexpr char kModelMismatch[] = "MODEL_MISMATCH";
inline constexpr char kFormatTooOld[] = "FORMAT_TOO_OLD";
inline constexpr char kFormatTooNew[] = "FORMAT_TOO_NEW";
inline constexpr char kSessionDeleted[] = "SESSION_DELETED";
inline constexpr char kSessionDamaged[] = "SESSION_DAMAGED";
inline constexpr char kPositionNotRestorable[] = "POSITION_NOT_RESTORABLE";
inline constexpr char kTranscriptNotKept[] = "TRANSCRIPT_NOT_KEPT";
inline constexpr char kResumeExpired[] = "RESUME_EXPIRED";
inline constexpr char kNoChatTemplate[] = "NO_CHAT_TEMPLATE";
inline constexpr char kSlowConsumer[] = "SLOW_CONSUMER";
inline constexpr char kQuotaRequests[] = "QUOTA_REQUESTS";
inline constexpr char kQuotaTokens[] = "QUOTA_TOKENS";
inline constexpr char kQuotaSessions[] = "QUOTA_SESSIONS";
inline constexpr char kQuotaBytes[] = "QUOTA_BYTES";
inline constexpr char kQueueFull[] = "QUEUE_FULL";
inline constexpr char kOverloaded[] = "OVERLOADED";
inline constexpr char kDraining[] = "DRAINING";
inline constexpr char kStoreUnavailable[] = "STORE_UNAVAILABLE";
inline constexpr char kStoreFull[] = "STORE_FULL";
inline constexpr char kStoreNotDurable[] = "STORE_NOT_DURABLE";
inline constexpr char kDeadlineExceeded[] = "DEADLINE_EXCEEDED";
inline constexpr char kCancelled[] = "CANCELLED";
inline constexpr char kStateCorrupt[] = "STATE_CORRUPT";
inline constexpr char kStateNotFinite[] = "STATE_NOT_FINITE";
inline constexpr char kBackendFailed[] = "BACKEND_FAILED";
inline constexpr char kInternal[] = "INTERNAL";
}  // namespace reason

// Every reason, with the code that it comes with; two of them where it depends on whose fault it
// is.
struct ReasonCode {
  std::string_view reason;
  absl::StatusCode code;
};
inline constexpr ReasonCode kReasonCodes[] = {
    {reason::kFieldInvalid, absl::StatusCode::kInvalidArgument},
    {reason::kFieldOutOfRange, absl::StatusCode::kInvalidArgument},
    {reason::kFieldRequired, absl::StatusCode::kInvalidArgument},
    {reason::kPageTokenInvalid, absl::StatusCode::kInvalidArgument},
    {reason::kRequestIdReused, absl::StatusCode::kInvalidArgument},
    {reason::kResumeTokenInvalid, absl::StatusCode::kInvalidArgument},
    {reason::kInputTooLong, absl::StatusCode::kInvalidArgument},
    {reason::kContextFull, absl::StatusCode::kFailedPrecondition},
    {reason::kPositionOutOfRange, absl::StatusCode::kOutOfRange},
    {reason::kIngestGap, absl::StatusCode::kOutOfRange},
    {reason::kCredentialsInvalid, absl::StatusCode::kUnauthenticated},
    {reason::kAccessDenied, absl::StatusCode::kPermissionDenied},
    {reason::kSessionNotFound, absl::StatusCode::kNotFound},
    {reason::kSnapshotNotFound, absl::StatusCode::kNotFound},
    {reason::kModelNotFound, absl::StatusCode::kNotFound},
    {reason::kGenerationNotFound, absl::StatusCode::kNotFound},
    {reason::kSessionExists, absl::StatusCode::kAlreadyExists},
    {reason::kSnapshotExists, absl::StatusCode::kAlreadyExists},
    {reason::kSessionBusy, absl::StatusCode::kAborted},
    {reason::kLeaseLost, absl::StatusCode::kAborted},
    {reason::kStreamTakenOver, absl::StatusCode::kAborted},
    {reason::kStreamDiverged, absl::StatusCode::kAborted},
    {reason::kVersionMismatch, absl::StatusCode::kAborted},
    {reason::kVersionRegressed, absl::StatusCode::kDataLoss},
    {reason::kModelNotLoaded, absl::StatusCode::kFailedPrecondition},
    {reason::kModelMismatch, absl::StatusCode::kFailedPrecondition},
    {reason::kFormatTooOld, absl::StatusCode::kFailedPrecondition},
    {reason::kFormatTooNew, absl::StatusCode::kFailedPrecondition},
    {reason::kSessionDeleted, absl::StatusCode::kFailedPrecondition},
    {reason::kSessionDamaged, absl::StatusCode::kFailedPrecondition},
    {reason::kPositionNotRestorable, absl::StatusCode::kFailedPrecondition},
    {reason::kTranscriptNotKept, absl::StatusCode::kFailedPrecondition},
    {reason::kResumeExpired, absl::StatusCode::kFailedPrecondition},
    {reason::kNoChatTemplate, absl::StatusCode::kFailedPrecondition},
    {reason::kSlowConsumer, absl::StatusCode::kResourceExhausted},
    {reason::kQuotaRequests, absl::StatusCode::kResourceExhausted},
    {reason::kQuotaTokens, absl::StatusCode::kResourceExhausted},
    {reason::kQuotaSessions, absl::StatusCode::kResourceExhausted},
    {reason::kQuotaBytes, absl::StatusCode::kResourceExhausted},
    {reason::kQueueFull, absl::StatusCode::kUnavailable},
    {reason::kOverloaded, absl::StatusCode::kUnavailable},
    {reason::kDraining, absl::StatusCode::kUnavailable},
    {reason::kStoreUnavailable, absl::StatusCode::kUnavailable},
    {reason::kStoreFull, absl::StatusCode::kUnavailable},
    {reason::kStoreNotDurable, absl::StatusCode::kUnavailable},
    {reason::kDeadlineExceeded, absl::StatusCode::kDeadlineExceeded},
    {reason::kCancelled, absl::StatusCode::kCancelled},
    {reason::kStateCorrupt, absl::StatusCode::kDataLoss},         // in the store
    {reason::kStateCorrupt, absl::StatusCode::kInvalidArgument},  // in a file
    {reason::kStateNotFinite, absl::StatusCode::kInternal},
    {reason::kStateNotFinite, absl::StatusCode::kInvalidArgument},  // in a file
    {reason::kBackendFailed, absl::StatusCode::kInternal},
    {reason::kInternal, absl::StatusCode::kInternal},
};

// An error with ErrorInfo{reason, domain "mneme", metadata}.
absl::Status Error(absl::StatusCode code, std::string_view reason, std::string message,
                   std::map<std::string, std::string> metadata = {});

// Adds RetryInfo: the call may be repeated after `delay`.
absl::Status WithRetry(absl::Status status, absl::Duration delay);

// Adds ResourceInfo{type, name}.
absl::Status WithResource(absl::Status status, std::string_view type, std::string_view name);

// Adds QuotaFailure: `subject`, a resource, is at the limit that `description` says.
absl::Status WithQuota(absl::Status status, std::string_view subject, std::string description);

// ErrorInfo.reason of an error made here; "" otherwise.
std::string ReasonOf(const absl::Status& status);

// Collects every bad field of a request, so that a caller sees all at once.
class FieldErrors {
 public:
  // `prefix` goes before every field's path: "start.".
  explicit FieldErrors(std::string prefix = "") : prefix_(std::move(prefix)) {}
  // `field` is a proto path ("sampling.top_p"); `expected` reads after it: "must be in (0, 1],
  // is 1.5".
  void Add(std::string_view field, std::string expected,
           std::string_view reason = reason::kFieldInvalid);
  bool empty() const { return violations_.empty(); }
  // OK if there are none; else INVALID_ARGUMENT with BadRequest and the first violation's reason.
  absl::Status ToStatus() const;

 private:
  struct Violation {
    std::string field, description, reason;
  };
  const std::string prefix_;
  std::vector<Violation> violations_;
};

}  // namespace mneme::server
