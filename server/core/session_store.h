// Sessions and their snapshots as records of the store: reading, and changing them atomically.
//
// Every method maps the store's errors to this API's. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/state/snapshot.h"
#include "memstore/state_store.h"
#include "mneme/v1/resources.pb.h"
#include "server/core/lease_table.h"
#include "server/core/metrics.h"
#include "server/core/session_names.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

struct SessionRecord {
  SessionName name;
  int64_t record_version = 0;  // of the store; +1 with every change, metadata included
  storage::StoredSession data;
  // That of data.head(), if it is at hand; it need not be parsed again then.
  std::shared_ptr<const engine::SnapshotManifest> manifest;
};

// What a tenant keeps.
struct StoredUse {
  int64_t sessions = 0;
  int64_t bytes = 0;

  StoredUse& operator+=(const StoredUse& other) {
    sessions += other.sessions;
    bytes += other.bytes;
    return *this;
  }
  friend StoredUse operator+(StoredUse a, const StoredUse& b) { return a += b; }
};

// Where a session stands at `now`: an expired session is deleted from that moment on.
struct Lifecycle {
  bool deleted = false;
  bool purge_due = false;
  int64_t delete_time_us = 0;
  int64_t purge_time_us = 0;
};

class SessionStore {
 public:
  // Leases are taken only where the store is shared.
  SessionStore(std::unique_ptr<memstore::StateStore> store, int64_t undelete_window_ms,
               LeaseTable::Options leases, Metrics& metrics);
  // Whether the store can be used, and what it holds. Once, before anything else.
  absl::Status Start();

  // NOT_FOUND SESSION_NOT_FOUND, also once the session is due to be purged.
  absl::StatusOr<SessionRecord> Get(const SessionName& name) const;
  // Like Get, but a deleted session is FAILED_PRECONDITION SESSION_DELETED, and with
  // `refuse_damaged` a damaged one SESSION_DAMAGED.
  absl::StatusOr<SessionRecord> GetUsable(const SessionName& name, bool refuse_damaged) const;
  Lifecycle LifecycleOf(const storage::StoredSession& data, absl::Time now) const;

  // In order of names, strictly after `start_after`; purge-due sessions are left out. Sets
  // `last_name` to where the next call should go on, "" at the end.
  absl::StatusOr<std::vector<SessionRecord>> List(const std::string& tenant,
                                                  const std::string& start_after, int limit,
                                                  std::string& last_name) const;

  // NOT_FOUND SNAPSHOT_NOT_FOUND.
  absl::StatusOr<storage::StoredSnapshot> GetSnapshot(const SnapshotName& name) const;
  absl::StatusOr<std::string> ReadChunk(const std::string& tenant,
                                        const memstore::ChunkId& id) const;

  // Keeps chunks in the store for who reads them one after the other, whatever becomes of the
  // session that they are of; as long as it lives, and is renewed at least once an hour.
  class Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept : store_(std::exchange(other.store_, nullptr)), put_(other.put_) {}
    Pin& operator=(Pin&&) = delete;
    ~Pin();
    // Cheap: writes only when it is time. Best effort.
    void Renew();

   private:
    friend class SessionStore;
    memstore::StateStore* store_ = nullptr;
    memstore::Put put_;  // the next
  };
  // FAILED_PRECONDITION (no reason) if a chunk is gone: read the session again. A store that takes
  // no writes gives an empty pin, which keeps nothing.
  absl::StatusOr<Pin> PinChunks(const SessionName& name, std::vector<memstore::ChunkId> chunks);

  // What one atomic change writes beside the session's own record.
  struct Change {
    std::vector<memstore::Put> puts;
    std::vector<memstore::Delete> deletes;
    std::vector<memstore::NewChunk> new_chunks;
    bool sync = true;  // false: on disk soon after
  };
  // Reads the record, lets `change` modify it, writes; again from the start if someone else wrote
  // in between. `change` may refuse with an error, which is returned. Returns what was written.
  // `new_chunks` are offered beside those of the change, each time. `lease` is the writer's: the
  // change happens only while it is held, ABORTED LEASE_LOST otherwise; `last_write` gives it back.
  using ChangeFn = std::function<absl::Status(SessionRecord& record, Change& extra)>;
  absl::StatusOr<SessionRecord> Update(const SessionName& name, const ChangeFn& change,
                                       std::vector<memstore::NewChunk> new_chunks,
                                       LeaseTable::Lease& lease, bool last_write);
  // For who is not the session's writer.
  absl::StatusOr<SessionRecord> Update(const SessionName& name, const ChangeFn& change) {
    LeaseTable::Lease none;
    return Update(name, change, {}, none, false);
  }
  // All or none, with `extra` records of theirs. ALREADY_EXISTS SESSION_EXISTS names the first id
  // that is taken, also by a deleted session. FAILED_PRECONDITION (no reason) if a chunk they refer
  // to is gone: read again. Sets record_version and stored_bytes.
  absl::Status Create(std::vector<SessionRecord>& records, const std::vector<memstore::Put>& extra,
                      std::vector<memstore::NewChunk> new_chunks = {});
  // Removes a session that is due to be purged: record, snapshots and, unless shared, chunks. OK if
  // it is gone already, or not due.
  absl::Status Purge(const SessionName& name);

  // nullptr where no other server has the store.
  LeaseTable* leases() { return leases_.get(); }
  // Like LeaseTable::Take, with the store's errors mapped.
  absl::StatusOr<LeaseTable::Lease> TakeLease(const SessionName& name, CallContext& holder);

  // Up to `limit` names whose expiry or purge is due. Removes what else has expired: marks of
  // requests, turns that nobody has resumed, and leases and pins that nobody has used for long.
  absl::StatusOr<std::vector<SessionName>> Due(absl::Time now, int limit);

  // Sets mneme_sessions{tier="store"} by what is there, without reading it. Update, Create and
  // Purge keep that up, but for what other servers do.
  absl::Status CountSessions();
  // From the store's totals; deleted sessions count until they are purged.
  absl::StatusOr<StoredUse> UseOf(const std::string& tenant) const;

  absl::Status Probe();

  // Sets stored_bytes in those records, of one tenant, that have none because a server wrote them
  // that did not count. Reads their snapshots, some hundred at a time.
  absl::Status CountBytes(std::span<SessionRecord> records) const;

  // That a call with this request_id was done; nullopt if that is not known.
  absl::StatusOr<std::optional<storage::StoredRequest>> FindRequest(const std::string& tenant,
                                                                    const std::string& id) const;
  static memstore::Put RequestPut(const std::string& tenant, const std::string& id,
                                  const storage::StoredRequest& request, absl::Time expire_time);

  // Records of others beside the sessions' own (turn_journal.h).
  absl::StatusOr<std::optional<memstore::Record>> Find(const memstore::Key& key) const;
  // At most 1000.
  absl::StatusOr<std::vector<memstore::ListedRecord>> FindAll(const std::string& tenant,
                                                              const std::string& prefix) const;
  // For who holds the session, while he does: `lease` is his. ABORTED without a reason if a record
  // has another version than expected.
  absl::Status Write(memstore::Transaction transaction, LeaseTable::Lease& lease);

  memstore::Key SnapshotKey(const SnapshotName& name) const;
  // `manifest`: that of the snapshot's point, if it is at hand.
  static memstore::Put SnapshotPut(const memstore::Key& key, int64_t expected_version,
                                   const storage::StoredSnapshot& snapshot,
                                   const engine::SnapshotManifest* manifest = nullptr);

 private:
  // Of a transaction that met other versions: UNAVAILABLE if that is because another server has
  // done the same request meanwhile.
  absl::Status CheckNotDone(const memstore::Transaction& transaction) const;
  absl::Status Map(const absl::Status& status, const char* op) const;
  // From the snapshots; those in `puts` are not written yet.
  absl::Status CountBytes(const std::vector<SessionRecord*>& records,
                          const std::vector<memstore::Put>& puts) const;
  // stored_bytes of `record`, which was `before`, with `puts` written beside it.
  absl::Status KeepStoredBytes(const storage::StoredSession& before,
                               const std::vector<memstore::Put>& puts, SessionRecord& record) const;
  memstore::Put SessionPut(const SessionRecord& record) const;

  std::unique_ptr<memstore::StateStore> store_;
  const int64_t undelete_window_us_;
  Metrics& metrics_;
  std::unique_ptr<LeaseTable> leases_;
};

// Chunks that a point refers to. `manifest`: its own, if it is at hand.
std::vector<memstore::ChunkId> ChunksOf(const storage::Point& point,
                                        const engine::SnapshotManifest* manifest = nullptr);
std::string EtagOf(const SessionRecord& record);
// ABORTED VERSION_MISMATCH with current_version. Counted.
absl::Status VersionMismatch(const SessionRecord& record, Metrics& metrics);
// OK if `expected` is 0 or the session's version; VersionMismatch if that is behind it. DATA_LOSS
// VERSION_REGRESSED if the session was never there, or is no longer: versions only go up.
absl::Status CheckVersion(int64_t expected, const SessionRecord& record, Metrics& metrics);
// What the session's writer is told who finds that somebody else wrote: LEASE_LOST, or without a
// lease VERSION_MISMATCH. Counted.
absl::Status WrittenByOthers(const SessionRecord& record, const LeaseTable::Lease& lease,
                             Metrics& metrics);
int64_t NowMicros();

}  // namespace mneme::server
