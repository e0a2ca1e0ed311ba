// Between a state in memory and a session in the store: restore, commit, replay.
#pragma once

#include <functional>
#include <optional>
#include <span>

#include "server/core/parts.h"
#include "server/core/transcript_runs.h"

namespace mneme::server {

// A slot of the model's device, as StateCache::Acquire gives it, for a state that never holds more
// than `end` tokens. INTERNAL BACKEND_FAILED at once if the device has failed for good, also while
// the call waited.
absl::StatusOr<StateCache::Grant> TakeSlot(Parts& parts, CallContext& context, const Model& model,
                                           int64_t end, const StateCache::Identity* want,
                                           int64_t queued_tokens);

// The snapshot of a state that is to be kept. An error leaves the session as it is: BACKEND_FAILED,
// OVERLOADED or INTERNAL.
absl::StatusOr<engine::EncodedSnapshot> EncodeState(const Model& model, const LoadedState& loaded);

// Reads the state of `point`. DATA_LOSS STATE_CORRUPT if the stored bytes fail their checks,
// FAILED_PRECONDITION MODEL_MISMATCH if they are of another model or another state layout.
absl::StatusOr<LoadedState> RestorePoint(Parts& parts, const Model& model,
                                         const std::string& tenant, const storage::Point& point);

// Its head, as `seen`, cannot be read. Best effort: what cannot be written is found again.
void MarkDamaged(Parts& parts, const SessionRecord& seen);

// Which state in memory is that of the session's head.
StateCache::Identity IdentityOf(const SessionRecord& record);

// A session's last committed state, in a slot. The resident one if it is the right one.
struct HeldState {
  StateCache::Slot slot;
  LoadedState loaded;
  bool was_resident = false;
  double queue_seconds = 0;
  double restore_seconds = 0;
};
// What a call means to read: `queued` tokens, and the state never holds more than `end`.
struct TokenCounts {
  int64_t queued = 0;
  int64_t end = 0;
};
// For the session's writer. A state that cannot be read marks the session as damaged.
absl::StatusOr<HeldState> HoldHead(Parts& parts, CallContext& context, const Model& model,
                                   const SessionRecord& record, const TokenCounts& counts);
// For readers and stateless calls: a copy, or an empty state if `record` is null.
absl::StatusOr<HeldState> HoldCopy(Parts& parts, CallContext& context, const Model& model,
                                   const SessionRecord* record, const TokenCounts& counts);

struct CommitResult {
  SessionRecord record;
  double seconds = 0;
};
// What was read and generated since the last commit; the transcript keeps it as a turn.
struct NewTokens {
  std::span<const engine::TokenId> ids;
  RunList runs;  // all ids
  v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
};
struct CommitOptions {
  LeaseTable::Lease& lease;                     // the writer's; the end of a turn gives it back
  bool turn_end = true;                         // an automatic snapshot is due
  const storage::IngestMark* ingest = nullptr;  // its version is filled in here
  const CallContext* call = nullptr;            // whose request this does
};
// Writes `loaded` as the version after `base`. On success loaded.manifest is the new one. On
// failure the session is as it was and `loaded` must be thrown away.
absl::StatusOr<CommitResult> CommitHead(Parts& parts, const Model& model, const SessionRecord& base,
                                        LoadedState& loaded, const NewTokens& tokens,
                                        const CommitOptions& options);

// Feeds `tokens` to loaded.state through the batch. `on_rows`, if given, gets all logits, also
// those before the first token where the state has read something, on a thread of the batch: [n,
// V], the first row being what the state had to say about tokens[first]. The context's cancellation
// ends it with its status; the state must then be thrown away.
using RowsFn = std::function<void(int64_t first, std::span<const float> logits)>;
absl::Status ReadTokens(CallContext& context, const Model& model, LoadedState& loaded,
                        std::span<const engine::TokenId> tokens, const RowsFn& on_rows = nullptr);

}  // namespace mneme::server
