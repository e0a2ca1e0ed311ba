// What the store keeps of a turn that may be gone on with by another process: the request with all
// that was left open, the version it goes on from, and what it has said so far.
// docs/state_format.md has the records.
//
// A turn is deterministic: whoever reads the input and what was said, and then samples with the
// request's seed from there, says what the turn would have said. So the journal may lag behind what
// the client has. It is written beside the turn by the turn's own thread, which is not the
// engine's, and not synced: it is for processes that die, not for machines that lose power. Where
// the store is shared each write is fenced by the session's lease, like a commit.
//
// Only turns of sessions with on_disconnect CONTINUE have one; nobody may come back to the others.
// The turn's end removes it: a commit in its own transaction, which leaves all that was said for
// who comes back for it (StoredEnd), anything else by itself. It stays behind when the process
// dies; then the turn is interrupted, until somebody resumes it, another turn of the session
// begins, or nobody has come for resume_window.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/core/lease_table.h"
#include "server/core/session_store.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

// One turn's writer. Not thread-safe. One that was not begun does nothing.
class TurnJournal {
 public:
  using Clock = std::chrono::steady_clock;

  // A write is due after so many tokens, or so long after the last one if there are any.
  static constexpr int64_t kTokens = 32;
  static constexpr auto kInterval = std::chrono::milliseconds(250);

  TurnJournal() = default;
  // `arrival`: when the turn's request came.
  TurnJournal(SessionStore& sessions, SessionName session, absl::Duration resume_window,
              Clock::time_point arrival)
      : sessions_(&sessions),
        session_(std::move(session)),
        window_(resume_window),
        arrival_(arrival) {}

  // Before anybody hears of the turn. An error of the store: then nobody can come back to it.
  absl::Status Begin(const storage::StoredJournal& turn, LeaseTable::Lease& lease);

  // What an interrupted turn's session has, for its writer to go on with.
  struct Interrupted {
    storage::StoredJournal turn;
    std::vector<engine::TokenId> output;
    std::map<std::string, int64_t> versions;  // of all records, by their keys' names
    absl::Time expire_time;                   // of the right to resume it
    absl::Duration elapsed;                   // until it was interrupted
  };
  void GoOn(Interrupted interrupted);

  bool open() const { return open_; }
  // When and with how many tokens in all a write is due.
  Clock::time_point due() const { return open_ ? due_ : Clock::time_point::max(); }
  int64_t due_tokens() const { return open_ ? num_tokens() + kTokens : INT64_MAX; }
  int64_t num_tokens() const { return static_cast<int64_t>(tokens_.size()); }
  // What was said behind num_tokens(), if that is due, or `now`. Best effort: what could not be
  // written is written with the next.
  void Write(const std::vector<engine::TokenId>& more, LeaseTable::Lease& lease, bool now = false);

  // Of the turn's commit: leaves `events` in place of the journal. Again, if the commit is tried
  // again.
  void AddEnd(const std::vector<v1::GenerateResponse>& events, SessionStore::Change& change);
  // The turn ended without a commit. Best effort: what cannot be removed expires.
  void Discard(LeaseTable::Lease& lease);
  // Nothing more will be written.
  void Close() { open_ = false; }

 private:
  memstore::Put PutOf(const std::string& name, std::string value) const;
  memstore::Put GenerationPut() const;
  absl::Status Commit(memstore::Transaction transaction, LeaseTable::Lease& lease);
  // After a write of which it is not known how it ended. False: somebody else has settled the turn.
  bool ReadVersions();

  SessionStore* sessions_ = nullptr;
  SessionName session_;
  absl::Duration window_;
  Clock::time_point arrival_;
  bool open_ = false;

  std::string generation_;                   // its id
  std::map<std::string, int64_t> versions_;  // of what is stored
  bool sure_ = true;                         // of versions_
  std::vector<engine::TokenId> tokens_;      // with those that could not be written
  int64_t written_ = 0;                      // of them
  Clock::time_point due_, renewal_due_;
};

// DATA_LOSS STATE_CORRUPT, of an interrupted turn that nobody can go on with.
absl::Status DamagedTurn();
// FAILED_PRECONDITION RESUME_EXPIRED. `generation`: its full name.
absl::Status ResumeExpired(const std::string& generation);

// The one that `session` has, if it has one.
absl::StatusOr<std::optional<TurnJournal::Interrupted>> FindInterrupted(
    const SessionStore& sessions, const SessionName& session);
// By the session's writer, for whom it is of no use: it cannot be resumed any more.
absl::Status SettleInterrupted(SessionStore& sessions, const SessionName& session,
                               LeaseTable::Lease& lease);

// What is stored under a generation's name: an interrupted turn, or the end of a committed one.
struct StoredGeneration {
  SessionName session;
  std::optional<TurnJournal::Interrupted> interrupted;
  std::optional<storage::StoredEnd> end;
};
// nullopt if there is neither, any more.
absl::StatusOr<std::optional<StoredGeneration>> FindStoredGeneration(const SessionStore& sessions,
                                                                     const std::string& tenant,
                                                                     const std::string& generation);

// Of the sweeper and of a purge: keys of other records are none of theirs.
bool IsGeneration(const memstore::Key& key);
// Removes what is stored of the generation whose key has expired. False if that was not possible.
bool RemoveExpiredGeneration(SessionStore& sessions, const memstore::Key& key, absl::Time now);
// The prefixes of all that a session's turns have left.
std::vector<std::string> TurnPrefixes(const SessionName& session);

}  // namespace mneme::server
