#include "server/core/session_store.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"
#include "server/core/stored_bytes.h"
#include "server/core/transcript.h"
#include "server/core/turn_journal.h"

namespace mneme::server {
namespace {

constexpr char kSessionPrefix[] = "sessions/";
constexpr char kPinPrefix[] = "pins/";
// How long a pin that nobody has removed stays.
constexpr absl::Duration kPinned = absl::Hours(2);
constexpr char kRequestPrefix[] = "requests/";

// Snapshots: some kilobytes each.
constexpr size_t kReadAtOnce = 500;

// Of one look for what has expired.
constexpr int kExpiredBatch = 256;
constexpr int kMaxExpiredRounds = 64;

memstore::Key SessionKey(const SessionName& name) {
  return {name.tenant, absl::StrCat(kSessionPrefix, name.session)};
}
std::string SnapshotPrefix(const SessionName& name) {
  return absl::StrCat("snapshots/", name.session, "/");
}

absl::Status NotFound(const SessionName& name) {
  return WithResource(Error(absl::StatusCode::kNotFound, reason::kSessionNotFound,
                            "there is no such session; create it first"),
                      "mneme.v1.Session", name.str());
}

absl::Status Unreadable() {
  return Error(absl::StatusCode::kDataLoss, reason::kStateCorrupt,
               "the stored record of this session cannot be read");
}

constexpr Metrics::Stored kStoredKinds[] = {Metrics::Stored::kActive, Metrics::Stored::kDamaged,
                                            Metrics::Stored::kDeleted};

Metrics::Stored StoredKind(const storage::StoredSession& data) {
  return data.delete_time_us() != 0 ? Metrics::Stored::kDeleted
         : data.damaged()           ? Metrics::Stored::kDamaged
                                    : Metrics::Stored::kActive;
}

// In the store's totals; what such a number means must never change.
int TallyKind(Metrics::Stored kind) {
  switch (kind) {
    case Metrics::Stored::kActive:
      return 1;
    case Metrics::Stored::kDamaged:
      return 2;
    case Metrics::Stored::kDeleted:
      return 3;
  }
  return 0;
}

// A session by its state, and its bytes. What cannot be read is not counted.
memstore::Tally TallyOf(const memstore::Key& key, std::string_view value) {
  if (!key.name.starts_with(kSessionPrefix)) return {};
  storage::StoredSession data;
  if (!data.ParseFromArray(value.data(), static_cast<int>(value.size()))) return {};
  return {TallyKind(StoredKind(data)), data.has_stored_bytes()
                                           ? std::max<int64_t>(data.stored_bytes(), 0)
                                           : BytesOf(data.head())};
}

}  // namespace

int64_t NowMicros() { return absl::ToUnixMicros(absl::Now()); }

std::vector<memstore::ChunkId> ChunksOf(const storage::Point& point,
                                        const engine::SnapshotManifest* manifest) {
  std::vector<memstore::ChunkId> chunks;
  absl::StatusOr<engine::SnapshotManifest> parsed;
  if (manifest == nullptr && !point.manifest().empty()) {
    // Written by ourselves and checked when the record was read.
    parsed = engine::SnapshotManifest::Parse(point.manifest());
    if (parsed.ok()) manifest = &*parsed;
  }
  if (manifest != nullptr) {
    for (const auto& chunk : manifest->chunks) chunks.push_back(chunk.hash);
  }
  for (const auto& chunk : point.transcript()) chunks.push_back(ToChunkId(chunk.id()));
  return chunks;
}

std::string EtagOf(const SessionRecord& record) {
  const auto hash =
      memstore::HashChunk(absl::StrCat("etag ", record.data.uid(), " ", record.record_version));
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(hash.data()), 8));
}

absl::Status VersionMismatch(const SessionRecord& record, Metrics& metrics) {
  metrics.version_conflicts.Increment();
  return Error(absl::StatusCode::kAborted, reason::kVersionMismatch,
               "the session has changed since; read it again and repeat the call",
               {{"current_version", absl::StrCat(record.data.head().version())}});
}

absl::Status CheckVersion(int64_t expected, const SessionRecord& record, Metrics& metrics) {
  const int64_t current = record.data.head().version();
  if (expected == 0 || expected == current) return absl::OkStatus();
  if (expected < current) return VersionMismatch(record, metrics);
  metrics.version_conflicts.Increment();
  return Error(absl::StatusCode::kDataLoss, reason::kVersionRegressed,
               absl::StrCat("the session is at version ", current, ", behind ", expected,
                            ": the store has lost what came in between, unless the session was "
                            "purged and made anew"),
               {{"current_version", absl::StrCat(current)}});
}

absl::Status WrittenByOthers(const SessionRecord& record, const LeaseTable::Lease& lease,
                             Metrics& metrics) {
  absl::Status mismatch = VersionMismatch(record, metrics);
  // Nobody writes beside a lease that is held.
  return lease.epoch() != 0 ? CancelStatus(CallContext::Cancel::kLeaseLost) : mismatch;
}

SessionStore::SessionStore(std::unique_ptr<memstore::StateStore> store, int64_t undelete_window_ms,
                           LeaseTable::Options leases, Metrics& metrics)
    : store_(std::move(store)), undelete_window_us_(undelete_window_ms * 1000), metrics_(metrics) {
  if (store_->shared()) {
    leases_ = std::make_unique<LeaseTable>(*store_, std::move(leases), metrics);
  }
}

absl::Status SessionStore::Start() {
  MNEME_RETURN_IF_ERROR(Probe());
  MNEME_RETURN_IF_ERROR(Map(store_->KeepTotals(TallyOf), "commit"));
  return CountSessions();
}

absl::Status SessionStore::Map(const absl::Status& status, const char* op) const {
  if (status.ok()) return status;
  metrics_.CountStoreError(op);
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      if (status.GetPayload(memstore::kNotDurablePayload).has_value()) {
        return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kStoreNotDurable,
                               "the session store cannot promise to keep what is written; repeat "
                               "the call later"),
                         absl::Seconds(5));
      }
      return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kStoreUnavailable,
                             "the session store cannot be reached; repeat the call later"),
                       absl::Seconds(1));
    case absl::StatusCode::kResourceExhausted:
      return WithRetry(
          Error(absl::StatusCode::kUnavailable, reason::kStoreFull,
                "the session store is full; delete sessions, or ask the operator for space"),
          absl::Seconds(30));
    case absl::StatusCode::kDataLoss:
      metrics_.checksum_failures.Increment();
      return Error(absl::StatusCode::kDataLoss, reason::kStateCorrupt,
                   "stored bytes of this session failed their checksum");
    default:
      return Error(absl::StatusCode::kInternal, reason::kInternal,
                   "the session store failed in an unexpected way");
  }
}

Lifecycle SessionStore::LifecycleOf(const storage::StoredSession& data, absl::Time now) const {
  Lifecycle out;
  const int64_t now_us = absl::ToUnixMicros(now);
  if (data.delete_time_us() != 0) {
    out.deleted = true;
    out.delete_time_us = data.delete_time_us();
    out.purge_time_us = data.purge_time_us();
  } else {
    int64_t expiry = data.expire_time_us();
    if (data.idle_ttl_us() != 0) {
      const int64_t idle = data.last_used_time_us() + data.idle_ttl_us();
      if (expiry == 0 || idle < expiry) expiry = idle;
    }
    if (expiry != 0 && expiry <= now_us) {
      out.deleted = true;
      out.delete_time_us = expiry;
      out.purge_time_us = expiry + undelete_window_us_;
    }
  }
  out.purge_due = out.deleted && out.purge_time_us <= now_us;
  return out;
}

absl::StatusOr<SessionRecord> SessionStore::Get(const SessionName& name) const {
  auto found = store_->Get(SessionKey(name));
  if (absl::IsNotFound(found.status())) return NotFound(name);
  if (!found.ok()) return Map(found.status(), "get");
  SessionRecord record{name, found->version, {}};
  if (!record.data.ParseFromString(found->value)) return Unreadable();
  if (LifecycleOf(record.data, absl::Now()).purge_due) return NotFound(name);
  return record;
}

absl::StatusOr<SessionRecord> SessionStore::GetUsable(const SessionName& name,
                                                      bool refuse_damaged) const {
  MNEME_ASSIGN_OR_RETURN(SessionRecord record, Get(name));
  if (LifecycleOf(record.data, absl::Now()).deleted) {
    return WithResource(
        Error(absl::StatusCode::kFailedPrecondition, reason::kSessionDeleted,
              "the session is deleted; undelete it before its purge_time, or create another"),
        "mneme.v1.Session", name.str());
  }
  if (refuse_damaged && record.data.damaged()) {
    return WithResource(
        Error(absl::StatusCode::kFailedPrecondition, reason::kSessionDamaged,
              "the session's stored state is damaged; rewind it to a good snapshot or delete it"),
        "mneme.v1.Session", name.str());
  }
  return record;
}

absl::StatusOr<std::vector<SessionRecord>> SessionStore::List(const std::string& tenant,
                                                              const std::string& start_after,
                                                              int limit,
                                                              std::string& last_name) const {
  memstore::ListOptions options{.realm = tenant, .prefix = kSessionPrefix, .limit = limit};
  if (!start_after.empty()) options.start_after = kSessionPrefix + start_after;
  auto listed = store_->List(options);
  if (!listed.ok()) return Map(listed.status(), "list");
  std::vector<SessionRecord> out;
  last_name.clear();
  for (auto& item : *listed) {
    const std::string id = item.name.substr(sizeof(kSessionPrefix) - 1);
    last_name = id;
    SessionRecord record{{tenant, id}, item.record.version, {}};
    if (!record.data.ParseFromString(item.record.value)) continue;
    if (!LifecycleOf(record.data, absl::Now()).purge_due) out.push_back(std::move(record));
  }
  if (static_cast<int>(listed->size()) < limit) last_name.clear();
  return out;
}

memstore::Key SessionStore::SnapshotKey(const SnapshotName& name) const {
  std::string id = name.snapshot;
  // Automatic snapshots sort by version.
  if (id.size() > 1 && id[0] == 'v' && id.find_first_not_of("0123456789", 1) == std::string::npos) {
    id = absl::StrCat("v", std::string(id.size() < 21 ? 21 - id.size() : 0, '0'), id.substr(1));
  }
  return {name.session.tenant, SnapshotPrefix(name.session) + id};
}

memstore::Put SessionStore::SnapshotPut(const memstore::Key& key, int64_t expected_version,
                                        const storage::StoredSnapshot& snapshot,
                                        const engine::SnapshotManifest* manifest) {
  return {.key = key,
          .expected_version = expected_version,
          .value = snapshot.SerializeAsString(),
          .chunks = ChunksOf(snapshot.point(), manifest)};
}

memstore::Put SessionStore::SessionPut(const SessionRecord& record) const {
  const storage::StoredSession& data = record.data;
  int64_t expire = 0;
  if (data.delete_time_us() != 0) {
    expire = data.purge_time_us();
  } else {
    expire = data.expire_time_us();
    if (data.idle_ttl_us() != 0) {
      const int64_t idle = data.last_used_time_us() + data.idle_ttl_us();
      if (expire == 0 || idle < expire) expire = idle;
    }
  }
  memstore::Put put{.key = SessionKey(record.name),
                    .expected_version = record.record_version,
                    .value = data.SerializeAsString(),
                    .chunks = ChunksOf(data.head(), record.manifest.get())};
  if (expire != 0) put.expire_time = absl::FromUnixMicros(expire);
  return put;
}

absl::StatusOr<storage::StoredSnapshot> SessionStore::GetSnapshot(const SnapshotName& name) const {
  auto found = store_->Get(SnapshotKey(name));
  if (absl::IsNotFound(found.status())) {
    return WithResource(Error(absl::StatusCode::kNotFound, reason::kSnapshotNotFound,
                              "there is no such snapshot; list the session's snapshots"),
                        "mneme.v1.Snapshot", name.str());
  }
  if (!found.ok()) return Map(found.status(), "get");
  storage::StoredSnapshot snapshot;
  if (!snapshot.ParseFromString(found->value)) return Unreadable();
  return snapshot;
}

absl::StatusOr<std::string> SessionStore::ReadChunk(const std::string& tenant,
                                                    const memstore::ChunkId& id) const {
  auto bytes = store_->GetChunk(tenant, id);
  if (bytes.ok()) return bytes;
  // A chunk that a live record refers to is missing.
  if (absl::IsNotFound(bytes.status())) return Map(absl::DataLossError("chunk"), "get_chunk");
  return Map(bytes.status(), "get_chunk");
}

absl::StatusOr<SessionStore::Pin> SessionStore::PinChunks(const SessionName& name,
                                                          std::vector<memstore::ChunkId> chunks) {
  Pin pin;
  if (chunks.empty()) return pin;
  pin.put_ = {.key = {name.tenant, absl::StrCat(kPinPrefix, name.session, "/", MakeUid())},
              .chunks = std::move(chunks),
              .expire_time = absl::Now() + kPinned};
  const absl::Status status = store_->Commit({.puts = {pin.put_}, .sync = false});
  if (absl::IsFailedPrecondition(status)) return status;
  if (status.ok()) {
    pin.store_ = store_.get();
    ++pin.put_.expected_version;
  }
  return pin;
}

void SessionStore::Pin::Renew() {
  const absl::Time now = absl::Now();
  if (store_ == nullptr || put_.expire_time - now > kPinned / 2) return;
  put_.expire_time = now + kPinned;
  if (store_->Commit({.puts = {put_}, .sync = false}).ok()) ++put_.expected_version;
}

SessionStore::Pin::~Pin() {
  if (store_ == nullptr) return;
  // What cannot be removed now is when it expires.
  store_->Commit({.deletes = {{put_.key, put_.expected_version}}, .sync = false}).IgnoreError();
}

absl::StatusOr<SessionRecord> SessionStore::Update(const SessionName& name, const ChangeFn& change,
                                                   std::vector<memstore::NewChunk> new_chunks,
                                                   LeaseTable::Lease& lease, bool last_write) {
  memstore::Transaction transaction{.new_chunks = std::move(new_chunks)};
  const auto given = static_cast<ptrdiff_t>(transaction.new_chunks.size());
  for (int attempt = 0;; ++attempt) {
    MNEME_ASSIGN_OR_RETURN(SessionRecord record, Get(name));
    const storage::StoredSession before = record.data;
    Change extra;
    MNEME_RETURN_IF_ERROR(change(record, extra));
    MNEME_RETURN_IF_ERROR(KeepStoredBytes(before, extra.puts, record));
    transaction.puts = std::move(extra.puts);
    transaction.deletes = std::move(extra.deletes);
    std::vector<memstore::NewChunk>& offered = transaction.new_chunks;
    offered.erase(offered.begin() + given, offered.end());
    offered.insert(offered.end(), std::make_move_iterator(extra.new_chunks.begin()),
                   std::make_move_iterator(extra.new_chunks.end()));
    transaction.puts.push_back(SessionPut(record));
    transaction.sync = extra.sync;
    MNEME_RETURN_IF_ERROR(lease.Fence(transaction, last_write));
    const absl::Status status = lease.Settle(store_->Commit(transaction));
    if (ReasonOf(status) == reason::kLeaseLost) return status;
    if (status.ok()) {
      ++record.record_version;
      metrics_.sessions_stored(StoredKind(before)).Decrement();
      metrics_.sessions_stored(StoredKind(record.data)).Increment();
      return record;
    }
    if (!absl::IsAborted(status) || attempt == 16) return Map(status, "commit");
    MNEME_RETURN_IF_ERROR(CheckNotDone(transaction));
  }
}

absl::Status SessionStore::Create(std::vector<SessionRecord>& records,
                                  const std::vector<memstore::Put>& extra,
                                  std::vector<memstore::NewChunk> new_chunks) {
  for (SessionRecord& record : records) {
    record.record_version = 0;
    MNEME_RETURN_IF_ERROR(KeepStoredBytes({}, extra, record));
  }
  memstore::Transaction transaction{.new_chunks = std::move(new_chunks)};
  for (int attempt = 0;; ++attempt) {
    transaction.puts = extra;
    for (const SessionRecord& record : records) transaction.puts.push_back(SessionPut(record));
    const absl::Status status = store_->Commit(transaction);
    if (status.ok()) {
      for (SessionRecord& record : records) {
        record.record_version = 1;
        metrics_.sessions_stored(StoredKind(record.data)).Increment();
      }
      return status;
    }
    if (absl::IsFailedPrecondition(status)) return status;
    if (!absl::IsAborted(status) || attempt == 16) return Map(status, "commit");
    MNEME_RETURN_IF_ERROR(CheckNotDone(transaction));
    for (const SessionRecord& record : records) {
      auto taken = Get(record.name);
      if (taken.ok()) {
        return WithResource(
            Error(absl::StatusCode::kAlreadyExists, reason::kSessionExists,
                  "a session with this id exists, perhaps deleted and not yet purged; "
                  "choose another id"),
            "mneme.v1.Session", record.name.str());
      }
      if (!absl::IsNotFound(taken.status())) return taken.status();
      MNEME_RETURN_IF_ERROR(Purge(record.name));  // due, but not swept yet
    }
  }
}

absl::Status SessionStore::Purge(const SessionName& name) {
  for (int attempt = 0;; ++attempt) {
    auto found = store_->Get(SessionKey(name));
    if (absl::IsNotFound(found.status())) return absl::OkStatus();
    if (!found.ok()) return Map(found.status(), "get");
    // Asked of this very record: another session may have taken the name since.
    storage::StoredSession data;
    if (!data.ParseFromString(found->value)) return Unreadable();
    if (!LifecycleOf(data, absl::Now()).purge_due) return absl::OkStatus();
    memstore::Transaction transaction;
    transaction.deletes.push_back({SessionKey(name), found->version});
    // At most 64 automatic snapshots and 256 others, and what a turn has left.
    std::vector<std::string> prefixes = TurnPrefixes(name);
    prefixes.push_back(SnapshotPrefix(name));
    for (const std::string& prefix : prefixes) {
      MNEME_ASSIGN_OR_RETURN(const auto listed, FindAll(name.tenant, prefix));
      for (const auto& item : listed) {
        transaction.deletes.push_back({{name.tenant, item.name}, item.record.version});
      }
    }
    const absl::Status status = store_->Commit(transaction);
    if (status.ok()) {
      metrics_.sessions_stored(StoredKind(data)).Decrement();
      return status;
    }
    if (!absl::IsAborted(status) || attempt == 16) return Map(status, "commit");
  }
}

absl::Status SessionStore::CountSessions() {
  const auto totals = store_->Totals("");
  if (!totals.ok()) return Map(totals.status(), "totals");
  for (const Metrics::Stored kind : kStoredKinds) {
    int64_t sessions = 0;
    for (const memstore::Total& total : *totals) {
      if (total.kind == TallyKind(kind)) sessions += total.records;
    }
    metrics_.sessions_stored(kind).Set(static_cast<double>(sessions));
  }
  return absl::OkStatus();
}

absl::StatusOr<StoredUse> SessionStore::UseOf(const std::string& tenant) const {
  const auto totals = store_->Totals(tenant);
  if (!totals.ok()) return Map(totals.status(), "totals");
  StoredUse use;
  for (const memstore::Total& total : *totals) use += {total.records, total.amount};
  return use;
}

absl::StatusOr<LeaseTable::Lease> SessionStore::TakeLease(const SessionName& name,
                                                          CallContext& holder) {
  auto lease = leases_->Take(name, holder);
  if (lease.ok() || lease.status().GetPayload(LeaseTable::kOwnerPayload).has_value()) return lease;
  return Map(lease.status(), "commit");
}

absl::StatusOr<std::vector<SessionName>> SessionStore::Due(absl::Time now, int limit) {
  std::vector<SessionName> out;
  // Marks of requests and generations expire in crowds: they must not keep sessions waiting, nor
  // pile up.
  for (int round = 0; round < kMaxExpiredRounds; ++round) {
    bool crowded = false;
    auto keys = store_->Expired(now, std::max(limit, kExpiredBatch));
    if (!keys.ok()) return Map(keys.status(), "expired");
    out.clear();
    std::map<std::string, memstore::Transaction> marks;  // by realm
    for (const memstore::Key& key : *keys) {
      if (key.name.starts_with(kSessionPrefix)) {
        if (static_cast<int>(out.size()) == limit) continue;
        out.push_back({key.realm, key.name.substr(sizeof(kSessionPrefix) - 1)});
      } else if (key.name.starts_with(kRequestPrefix)) {
        memstore::Transaction& transaction = marks[key.realm];
        transaction.deletes.push_back({key, 1});  // nobody writes one twice
        transaction.sync = false;
        crowded = true;
      } else if (IsGeneration(key)) {
        crowded = RemoveExpiredGeneration(*this, key, now) || crowded;
      } else if (LeaseTable::IsLease(key) || key.name.starts_with(kPinPrefix)) {
        auto record = store_->Get(key);
        if (record.ok() && record->expire_time <= now) {
          // Whoever has taken it since keeps it.
          (void)store_->Commit({.deletes = {{key, record->version}}, .sync = false});
        }
      }
    }
    // Another server may have been first.
    for (const auto& [realm, transaction] : marks) (void)store_->Commit(transaction);
    if (!crowded) break;
  }
  return out;
}

absl::Status SessionStore::CheckNotDone(const memstore::Transaction& transaction) const {
  for (const memstore::Put& put : transaction.puts) {
    if (!put.key.name.starts_with(kRequestPrefix) || !store_->Get(put.key).ok()) continue;
    return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kStoreUnavailable,
                           "another server has just done this request; repeat the call for its "
                           "answer"),
                     absl::Milliseconds(100));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<storage::StoredRequest>> SessionStore::FindRequest(
    const std::string& tenant, const std::string& id) const {
  const auto record = store_->Get({tenant, absl::StrCat(kRequestPrefix, id)});
  if (absl::IsNotFound(record.status())) return std::nullopt;
  if (!record.ok()) return Map(record.status(), "get");
  storage::StoredRequest request;
  if (record->expire_time <= absl::Now() || !request.ParseFromString(record->value)) {
    return std::nullopt;
  }
  return request;
}

memstore::Put SessionStore::RequestPut(const std::string& tenant, const std::string& id,
                                       const storage::StoredRequest& request,
                                       absl::Time expire_time) {
  return {.key = {tenant, absl::StrCat(kRequestPrefix, id)},
          .value = request.SerializeAsString(),
          .expire_time = expire_time};
}

absl::StatusOr<std::optional<memstore::Record>> SessionStore::Find(const memstore::Key& key) const {
  auto found = store_->Get(key);
  if (absl::IsNotFound(found.status())) return std::nullopt;
  if (!found.ok()) return Map(found.status(), "get");
  return *std::move(found);
}

absl::StatusOr<std::vector<memstore::ListedRecord>> SessionStore::FindAll(
    const std::string& tenant, const std::string& prefix) const {
  auto listed = store_->List({.realm = tenant, .prefix = prefix});
  if (!listed.ok()) return Map(listed.status(), "list");
  return listed;
}

absl::Status SessionStore::Write(memstore::Transaction transaction, LeaseTable::Lease& lease) {
  MNEME_RETURN_IF_ERROR(lease.Fence(transaction, /*release=*/false));
  const absl::Status status = lease.Settle(store_->Commit(transaction));
  return absl::IsAborted(status) ? status : Map(status, "commit");
}

absl::Status SessionStore::Probe() { return Map(store_->Probe(), "probe"); }

absl::Status SessionStore::KeepStoredBytes(const storage::StoredSession& before,
                                           const std::vector<memstore::Put>& puts,
                                           SessionRecord& record) const {
  if (CarryStoredBytes(before, record.data, record.manifest.get())) return absl::OkStatus();
  return CountBytes({&record}, puts);
}

absl::Status SessionStore::CountBytes(std::span<SessionRecord> records) const {
  std::vector<SessionRecord*> uncounted;
  for (SessionRecord& record : records) {
    if (!record.data.has_stored_bytes()) uncounted.push_back(&record);
  }
  return CountBytes(uncounted, {});
}

absl::Status SessionStore::CountBytes(const std::vector<SessionRecord*>& records,
                                      const std::vector<memstore::Put>& puts) const {
  struct Snapshots {
    SessionRecord* session;
    std::map<std::string, storage::Point> points;  // by id
  };
  std::vector<Snapshots> sessions;
  std::map<std::string, std::pair<size_t, std::string>> unread;  // session and id by record
  for (SessionRecord* session : records) {
    for (const storage::SnapshotRef& ref : session->data.snapshots()) {
      unread[SnapshotKey({session->name, ref.id()}).name] = {sessions.size(), ref.id()};
    }
    sessions.push_back({session, {}});
  }
  const auto take = [&](const std::string& name, const std::string& value) {
    const auto found = unread.find(name);
    if (found == unread.end()) return;
    const auto& [session, id] = found->second;
    storage::StoredSnapshot snapshot;
    if (snapshot.ParseFromString(value)) sessions[session].points[id] = snapshot.point();
    unread.erase(found);
  };
  for (const memstore::Put& put : puts) take(put.key.name, put.value);
  while (!unread.empty()) {
    std::vector<std::string> names;
    for (auto it = unread.begin(); it != unread.end() && names.size() < kReadAtOnce; ++it) {
      names.push_back(it->first);
    }
    const auto found = store_->GetMany(records[0]->name.tenant, names);
    if (!found.ok()) return Map(found.status(), "get");
    for (const auto& [name, record] : *found) take(name, record.value);
    for (const std::string& name : names) unread.erase(name);
  }
  for (Snapshots& session : sessions) CountStoredBytes(session.session->data, session.points);
  return absl::OkStatus();
}

}  // namespace mneme::server
