// Between a state in memory and a session in the store: restore, commit, replay.
#pragma once

#include <functional>
#include <optional>
#include <span>

#include "server/core/parts.h"
#include "server/core/transcript_runs.h"

namespace mneme::server {

// A state in memory with what it needs there.
struct HeldState {
  StateCache::Slot slot;
  const Replica* replica = nullptr;  // of the model: where the slot is, and the state
  LoadedState loaded;
  bool was_resident = false;
  double queue_seconds = 0;
  double restore_seconds = 0;
};

// A slot of `bytes` of the replica that has the session's state `want` (may be null), else of the
// one with the fewest calls; with the state, if it is there. INTERNAL BACKEND_FAILED at once if
// every device of the model has failed, also while the call waits.
absl::StatusOr<HeldState> TakeSlot(CallContext& context, const Model& model, int64_t bytes,
                                   const StateCache::Identity* want, int64_t queued_tokens);

// The snapshot of a state that is to be kept. An error leaves the session as it is: BACKEND_FAILED,
// OVERLOADED or INTERNAL.
absl::StatusOr<engine::EncodedSnapshot> EncodeState(const HeldState& held);

// Reads the state of `point`. DATA_LOSS STATE_CORRUPT if the stored bytes fail their checks,
// FAILED_PRECONDITION MODEL_MISMATCH if they are of another model or another state layout.
absl::StatusOr<LoadedState> RestorePoint(Parts& parts, const Model& model, const Replica& replica,
                                         const std::string& tenant, const storage::Point& point);

// Its head, as `seen`, cannot be read. Best effort: what cannot be written is found again.
void MarkDamaged(Parts& parts, const SessionRecord& seen);

// Which state in memory is that of the session's head.
StateCache::Identity IdentityOf(const SessionRecord& record);

// What a call means to read: `queued` tokens, and the state never holds more than `end`.
struct TokenCounts {
  int64_t queued = 0;
  int64_t end = 0;
};
// A session's last committed state, for its writer: the resident one if it is the right one. A
// state that cannot be read marks the session as damaged.
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
  // Of a turn: what is written beside the record, which is the new one. Each time it is tried.
  std::function<void(const SessionRecord& record, SessionStore::Change& change)> beside = nullptr;
};
// Writes held.loaded as the version after `base`; its manifest is the new one then. On failure the
// session is as it was and the state must be thrown away.
absl::StatusOr<CommitResult> CommitHead(Parts& parts, const Model& model, const SessionRecord& base,
                                        HeldState& held, const NewTokens& tokens,
                                        const CommitOptions& options);

// Feeds `tokens` to held.loaded.state through the batch. `on_rows`, if given, gets all logits, also
// those before the first token where the state has read something, on a thread of the batch: [n,
// V], the first row being what the state had to say about tokens[first]. The context's cancellation
// ends it with its status; the state must then be thrown away.
using RowsFn = std::function<void(int64_t first, std::span<const float> logits)>;
absl::Status ReadTokens(CallContext& context, const Model& model, HeldState& held,
                        std::span<const engine::TokenId> tokens, const RowsFn& on_rows = nullptr);

}  // namespace mneme::server
