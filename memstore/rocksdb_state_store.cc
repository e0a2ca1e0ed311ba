#include "memstore/rocksdb_state_store.h"

#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <filesystem>
#include <map>
#include <optional>
#include <shared_mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memstore/mutex.h"
#include "memstore/record_codec.h"
#include "memstore/rocksdb_database.h"
#include "memstore/rocksdb_log_scan.h"
#include "memstore/state_store.h"
#include "memstore/validate.h"

namespace mneme::memstore {
namespace {

constexpr char kProbeKey[] = "mprobe";
constexpr std::chrono::milliseconds kLogSyncPeriod{500};

std::string_view View(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

std::string RealmPrefix(char kind, std::string_view realm) {
  std::string key(1, kind);
  key.append(realm);
  key.push_back('\0');
  return key;
}
std::string RecordKey(const Key& key) { return RealmPrefix('r', key.realm) + key.name; }
std::string ChunkKey(char kind, std::string_view realm, const ChunkId& id) {
  std::string key = RealmPrefix(kind, realm);
  key.append(reinterpret_cast<const char*>(id.data()), id.size());
  return key;
}

// Big-endian with the sign bit flipped: bytewise order is the order of time.
std::string ExpiryPrefix(int64_t expiry_ns) {
  const uint64_t ordered = static_cast<uint64_t>(expiry_ns) ^ (1ull << 63);
  std::string key(1, 'x');
  for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(ordered >> shift));
  return key;
}
constexpr size_t kExpiryPrefixBytes = 9;

std::string ExpiryKey(int64_t expiry_ns, const Key& key) {
  std::string db_key = ExpiryPrefix(expiry_ns);
  db_key.append(key.realm);
  db_key.push_back('\0');
  db_key.append(key.name);
  return db_key;
}

// The first key after all that begin with `prefix`. Our prefixes never end in 0xff.
std::string PrefixEnd(std::string prefix) {
  prefix.back() = static_cast<char>(static_cast<unsigned char>(prefix.back()) + 1);
  return prefix;
}

// What a commit needs to know of a stored record.
struct RecordHead {
  int64_t version = 0;  // 0: absent
  int64_t expiry_ns = 0;
  std::vector<ChunkId> chunks;
};

constexpr int64_t kNever = INT64_MAX;

// Adds records or chunks. What only changes records, such as marking one as deleted, must still
// work on a disk that is nearly full: it is the way out.
bool Grows(const Transaction& transaction) {
  return !transaction.new_chunks.empty() ||
         std::any_of(transaction.puts.begin(), transaction.puts.end(),
                     [](const Put& put) { return put.expected_version == 0; });
}

class RocksDbStateStore : public StateStore {
 public:
  // options.env must be set.
  explicit RocksDbStateStore(const RocksDbInternalOptions& options)
      : options_(options), db_(options) {}

  ~RocksDbStateStore() override {
    if (keeper_.joinable()) {
      cancel_collection_ = true;
      {
        MutexLock lock(&keeper_mutex_);
        stop_ = true;
        keeper_wakes_.NotifyAll();
      }
      keeper_.join();
    }
    if (!db_.get()) return;
    // The log has everything already; a flush makes the next start quick. Nobody is left to tell
    // about a failure, and none loses anything.
    if (!read_only_) db_.get()->Flush(rocksdb::FlushOptions()).PermitUncheckedError();
  }

  absl::Status Start() {
    std::unique_lock<std::shared_mutex> lock(db_mutex_);
    if (absl::Status status = OpenDatabase(); !status.ok()) return status;
    keeper_ = std::thread([this] { Keep(); });
    return absl::OkStatus();
  }

  absl::StatusOr<Record> Get(const Key& key) const override;
  absl::StatusOr<std::string> GetChunk(std::string_view realm, const ChunkId& id) const override;
  absl::Status Commit(const Transaction& transaction) override;
  absl::StatusOr<std::vector<ListedRecord>> List(const ListOptions& options) const override;
  absl::StatusOr<std::vector<Key>> Expired(absl::Time now, int limit) const override;
  absl::StatusOr<std::vector<std::string>> Realms() const override;
  absl::StatusOr<StoreStats> Stats() const override;
  absl::Status Probe() override;

 private:
  struct PreparedPut {
    const Put* put;
    std::string db_key;
    std::string value;  // encoded
    int64_t expiry_ns;
  };
  // A committer in the queue; lives on its stack.
  struct Committer {
    const Transaction* transaction = nullptr;
    std::vector<PreparedPut> puts;
    std::map<ChunkId, const std::string*> offered;
    size_t size_bytes = 0;
    absl::Status result;
    bool done = false;
    CondVar wake;
  };
  // What a group has changed so far but not yet written. A count of 0 is a deleted chunk.
  struct Overlay {
    std::map<std::string, RecordHead> records;
    std::map<std::string, ChunkReference> references;
    StoreStats change;
  };

  void CommitGroup(const std::vector<Committer*>& group);
  absl::Status Apply(const Committer& committer, Overlay& overlay, rocksdb::WriteBatch& batch);
  absl::StatusOr<RecordHead> ReadHead(const Overlay& overlay, const Key& key,
                                      const std::string& db_key) const;
  absl::StatusOr<ChunkReference> ReadReference(const Overlay& overlay, const std::string& db_key,
                                               const ChunkId& id) const;
  absl::Status Write(rocksdb::WriteBatch& batch, bool sync);
  // A database that stays open while it is used. Never take two in one thread.
  class Use {
   public:
    explicit Use(const RocksDbStateStore* store) : lock_(store->db_mutex_), db_(store->db_.get()) {}
    rocksdb::DB* operator->() const { return db_; }
    bool closed() const { return db_ == nullptr; }

   private:
    std::shared_lock<std::shared_mutex> lock_;
    rocksdb::DB* const db_;
  };
  static absl::Status Closed() {
    return absl::UnavailableError("store could not be opened again after a failed write");
  }

  // Opens, reads or writes the format record, counts what is there. With db_mutex_ held alone.
  absl::Status OpenDatabase();
  void Count(rocksdb::DB& db);
  absl::Status Reopen() ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_mutex_);
  absl::Status CheckFreeSpace(size_t size_bytes) const;
  static std::unique_ptr<rocksdb::Iterator> Scan(const Use& db, const std::string& end,
                                                 rocksdb::Slice* end_slice);
  void Keep();
  void SyncLog();
  void CollectDeadBlobs();

  const RocksDbInternalOptions options_;

  // Shared to use db_, alone to replace it. Taken after log_mutex_. (std::shared_mutex carries no
  // thread-safety annotations; Use is the only way in.)
  mutable std::shared_mutex db_mutex_;
  RocksDbDatabase db_;                  // closed if it cannot be opened
  std::atomic<bool> read_only_{false};  // after a failed write that could not be recovered from yet

  Mutex queue_mutex_;
  std::deque<Committer*> queue_ ABSL_GUARDED_BY(queue_mutex_);

  Mutex probe_mutex_;
  int64_t probes_ ABSL_GUARDED_BY(probe_mutex_) = 0;

  std::atomic<int64_t> records_{0};
  std::atomic<int64_t> chunks_{0};
  std::atomic<int64_t> chunk_bytes_{0};
  // Held for each write, sync and reopening: nothing may follow a failed one but a reopening
  // (rocksdb_database.h). It costs nothing: writes come from the queue's leader one after the other
  // anyhow.
  Mutex log_mutex_;
  bool log_is_dirty_ ABSL_GUARDED_BY(log_mutex_) = false;
  // All writes up to this sequence number survive a power loss. Changes with log_mutex_ held.
  std::atomic<uint64_t> durable_sequence_{0};
  uint64_t marked_sequence_ ABSL_GUARDED_BY(log_mutex_) = 0;  // the log's last mark (log_scan.h)

  std::atomic<bool> cancel_collection_{false};

  Mutex keeper_mutex_;
  CondVar keeper_wakes_;
  bool stop_ ABSL_GUARDED_BY(keeper_mutex_) = false;
  std::thread keeper_;
};

absl::Status RocksDbStateStore::OpenDatabase() {
  if (absl::Status status = db_.Open(); !status.ok()) return status;
  Count(*db_.get());
  durable_sequence_ = db_.get()->GetLatestSequenceNumber();  // recovery wrote the log to tables
  read_only_ = false;
  return absl::OkStatus();
}

void RocksDbStateStore::Count(rocksdb::DB& db) {
  // A damaged entry or block is no reason to refuse the rest of the store: whoever reads it is
  // told. The figures are then too low.
  StoreStats found;
  std::unique_ptr<rocksdb::Iterator> it(db.NewIterator(rocksdb::ReadOptions()));
  for (it->Seek("r"); it->Valid() && it->key()[0] == 'r'; it->Next()) ++found.records;
  for (it->Seek("f"); it->Valid() && it->key()[0] == 'f'; it->Next()) {
    ++found.chunks;
    const auto reference = DecodeReference(View(it->key()), View(it->value()));
    if (reference.ok()) found.chunk_bytes += reference->size_bytes;
  }
  records_ = found.records;
  chunks_ = found.chunks;
  chunk_bytes_ = found.chunk_bytes;
}

// A failed write leaves it open how much of it is in the log, and RocksDB 7.8 cannot always resume:
// with an empty memtable Resume() keeps the broken log. Opening anew is the way that each crash
// takes too. It happens before the failed commit returns, so what readers see from then on is
// final. Where it fails (a full disk), the store is opened for reading until a later write
// succeeds.
absl::Status RocksDbStateStore::Reopen() {
  cancel_collection_ = true;
  std::unique_lock<std::shared_mutex> lock(db_mutex_);
  cancel_collection_ = false;
  db_.Close();
  log_is_dirty_ = false;
  const absl::Status opened = OpenDatabase();
  if (opened.ok()) return opened;
  read_only_ = true;
  db_.OpenForReading();
  if (db_.get()) Count(*db_.get());
  return opened;
}

absl::StatusOr<Record> RocksDbStateStore::Get(const Key& key) const {
  if (absl::Status status = ValidateKey(key); !status.ok()) return status;
  const std::string db_key = RecordKey(key);
  const Use db(this);
  if (db.closed()) return Closed();
  rocksdb::PinnableSlice value;
  const rocksdb::Status found =
      db->Get(rocksdb::ReadOptions(), db->DefaultColumnFamily(), db_key, &value);
  if (found.IsNotFound()) return RecordNotFound(key);
  if (!found.ok()) return ToStatus(found, absl::StrCat("record ", KeyText(key)));
  absl::StatusOr<Record> record = DecodeRecord(db_key, View(value));
  if (!record.ok()) {
    return absl::DataLossError(
        absl::StrCat("record ", KeyText(key), ": ", record.status().message()));
  }
  return record;
}

absl::StatusOr<std::string> RocksDbStateStore::GetChunk(std::string_view realm,
                                                        const ChunkId& id) const {
  if (absl::Status status = ValidateRealm(realm); !status.ok()) return status;
  std::string bytes;
  const Use db(this);
  if (db.closed()) return Closed();
  const rocksdb::Status found =
      db->Get(rocksdb::ReadOptions(), db->DefaultColumnFamily(), ChunkKey('c', realm, id), &bytes);
  if (found.IsNotFound()) return ChunkNotFound(id);
  if (!found.ok()) return ToStatus(found, absl::StrCat("chunk ", ChunkText(id)));
  if (HashChunk(bytes) != id) {
    return absl::DataLossError(absl::StrCat("chunk ", ChunkText(id), " of realm ",
                                            std::string(realm), " does not match its SHA-256"));
  }
  return bytes;
}

absl::Status RocksDbStateStore::Commit(const Transaction& transaction) {
  if (absl::Status status = ValidateTransaction(transaction); !status.ok()) return status;
  if (transaction.puts.empty() && transaction.deletes.empty()) return absl::OkStatus();
  Committer self;
  self.transaction = &transaction;
  for (const Put& put : transaction.puts) {
    Record record{put.expected_version + 1, put.value, put.chunks, put.expire_time};
    std::string db_key = RecordKey(put.key);
    std::string value = EncodeRecord(db_key, record);
    self.size_bytes += value.size();
    self.puts.push_back(
        {&put, std::move(db_key), std::move(value), ExpiryToNanos(put.expire_time)});
  }
  for (const NewChunk& chunk : transaction.new_chunks) {
    if (self.offered.emplace(chunk.id, &chunk.bytes).second) self.size_bytes += chunk.bytes.size();
  }

  std::vector<Committer*> group;
  {
    MutexLock lock(&queue_mutex_);
    queue_.push_back(&self);
    while (!self.done && queue_.front() != &self) self.wake.Wait(&queue_mutex_);
    if (self.done) return self.result;
    size_t size_bytes = 0;
    for (Committer* committer : queue_) {
      if (!group.empty() && (committer->transaction->sync != transaction.sync ||
                             size_bytes + committer->size_bytes > options_.group_bytes)) {
        break;
      }
      group.push_back(committer);
      size_bytes += committer->size_bytes;
    }
  }
  CommitGroup(group);
  MutexLock lock(&queue_mutex_);
  for (Committer* committer : group) {
    queue_.pop_front();
    if (committer == &self) continue;
    committer->done = true;
    committer->wake.NotifyOne();
  }
  if (!queue_.empty()) queue_.front()->wake.NotifyOne();
  return self.result;
}

void RocksDbStateStore::CommitGroup(const std::vector<Committer*>& group) {
  Overlay overlay;
  rocksdb::WriteBatch batch;
  PutDurableMark(durable_sequence_, batch);
  std::vector<Committer*> accepted;
  for (Committer* committer : group) {
    committer->result = CheckFreeSpace(Grows(*committer->transaction) ? committer->size_bytes : 0);
    if (!committer->result.ok()) continue;
    committer->result = Apply(*committer, overlay, batch);
    if (committer->result.ok()) accepted.push_back(committer);
  }
  if (accepted.empty()) return;
  const absl::Status written = Write(batch, group[0]->transaction->sync);
  for (Committer* committer : accepted) committer->result = written;
  if (!written.ok()) return;
  records_ += overlay.change.records;
  chunks_ += overlay.change.chunks;
  chunk_bytes_ += overlay.change.chunk_bytes;
}

absl::StatusOr<RecordHead> RocksDbStateStore::ReadHead(const Overlay& overlay, const Key& key,
                                                       const std::string& db_key) const {
  if (const auto it = overlay.records.find(db_key); it != overlay.records.end()) return it->second;
  absl::StatusOr<Record> record = Get(key);
  if (absl::IsNotFound(record.status())) return RecordHead{};
  if (!record.ok()) return record.status();
  return RecordHead{record->version, ExpiryToNanos(record->expire_time), std::move(record->chunks)};
}

absl::StatusOr<ChunkReference> RocksDbStateStore::ReadReference(const Overlay& overlay,
                                                                const std::string& db_key,
                                                                const ChunkId& id) const {
  if (const auto it = overlay.references.find(db_key); it != overlay.references.end()) {
    return it->second;
  }
  const Use db(this);
  if (db.closed()) return Closed();
  rocksdb::PinnableSlice value;
  const rocksdb::Status found =
      db->Get(rocksdb::ReadOptions(), db->DefaultColumnFamily(), db_key, &value);
  if (found.IsNotFound()) return ChunkReference{};
  if (!found.ok()) return ToStatus(found, absl::StrCat("references of chunk ", ChunkText(id)));
  absl::StatusOr<ChunkReference> reference = DecodeReference(db_key, View(value));
  if (!reference.ok()) {
    return absl::DataLossError(
        absl::StrCat("references of chunk ", ChunkText(id), ": ", reference.status().message()));
  }
  return reference;
}

// Checks one transaction against the database and the overlay; then, and only if all is well, adds
// it to both the overlay and the batch.
absl::Status RocksDbStateStore::Apply(const Committer& committer, Overlay& overlay,
                                      rocksdb::WriteBatch& batch) {
  const Transaction& transaction = *committer.transaction;
  const std::string& realm =
      transaction.puts.empty() ? transaction.deletes[0].key.realm : transaction.puts[0].key.realm;
  std::vector<RecordHead> old_of_puts, old_of_deletes;
  std::map<ChunkId, int64_t> delta;
  for (const PreparedPut& prepared : committer.puts) {
    const Put& put = *prepared.put;
    absl::StatusOr<RecordHead> old = ReadHead(overlay, put.key, prepared.db_key);
    if (!old.ok()) return old.status();
    if (old->version != put.expected_version) {
      return VersionMismatch(put.key, old->version, put.expected_version);
    }
    for (const ChunkId& id : old->chunks) --delta[id];
    for (const ChunkId& id : put.chunks) ++delta[id];
    old_of_puts.push_back(*std::move(old));
  }
  for (const Delete& del : transaction.deletes) {
    absl::StatusOr<RecordHead> old = ReadHead(overlay, del.key, RecordKey(del.key));
    if (!old.ok()) return old.status();
    if (old->version != del.expected_version) {
      return VersionMismatch(del.key, old->version, del.expected_version);
    }
    for (const ChunkId& id : old->chunks) --delta[id];
    old_of_deletes.push_back(*std::move(old));
  }
  struct Change {
    ChunkId id;
    std::string db_key;
    ChunkReference before, after;
  };
  std::vector<Change> changes;
  for (const auto& [id, amount] : delta) {
    if (amount == 0) continue;  // an old record of this transaction refers to it, so it exists
    std::string db_key = ChunkKey('f', realm, id);
    const absl::StatusOr<ChunkReference> before = ReadReference(overlay, db_key, id);
    if (!before.ok()) return before.status();
    ChunkReference after = *before;
    if (before->count == 0) {
      const auto offered = committer.offered.find(id);
      if (amount < 0 || offered == committer.offered.end()) {
        if (amount > 0) return ChunkMissing(id);
        return absl::DataLossError(
            absl::StrCat("chunk ", ChunkText(id), " lost its reference count"));
      }
      after.size_bytes = offered->second->size();
    } else if (amount < 0 && before->count < static_cast<uint64_t>(-amount)) {
      return absl::DataLossError(absl::StrCat("chunk ", ChunkText(id), " has ", before->count,
                                              " references, ", -amount, " are to go"));
    }
    after.count += amount;
    changes.push_back({id, std::move(db_key), *before, after});
  }

  for (size_t i = 0; i < committer.puts.size(); ++i) {
    const PreparedPut& prepared = committer.puts[i];
    const RecordHead& old = old_of_puts[i];
    if (old.version != 0 && old.expiry_ns != kNever && old.expiry_ns != prepared.expiry_ns) {
      batch.Delete(ExpiryKey(old.expiry_ns, prepared.put->key));
    }
    if (prepared.expiry_ns != kNever && (old.version == 0 || old.expiry_ns != prepared.expiry_ns)) {
      batch.Put(ExpiryKey(prepared.expiry_ns, prepared.put->key), rocksdb::Slice());
    }
    batch.Put(prepared.db_key, prepared.value);
    if (old.version == 0) ++overlay.change.records;
    overlay.records[prepared.db_key] = {old.version + 1, prepared.expiry_ns, prepared.put->chunks};
  }
  for (size_t i = 0; i < transaction.deletes.size(); ++i) {
    const Key& key = transaction.deletes[i].key;
    if (old_of_deletes[i].expiry_ns != kNever) {
      batch.Delete(ExpiryKey(old_of_deletes[i].expiry_ns, key));
    }
    const std::string db_key = RecordKey(key);
    batch.Delete(db_key);
    --overlay.change.records;
    overlay.records[db_key] = RecordHead{};
  }
  for (const Change& change : changes) {
    const auto size_bytes = static_cast<int64_t>(change.after.size_bytes);
    if (change.after.count == 0) {
      batch.Delete(change.db_key);
      batch.Delete(ChunkKey('c', realm, change.id));
      --overlay.change.chunks;
      overlay.change.chunk_bytes -= size_bytes;
    } else {
      batch.Put(change.db_key, EncodeReference(change.db_key, change.after));
      if (change.before.count == 0) {
        batch.Put(ChunkKey('c', realm, change.id), *committer.offered.at(change.id));
        ++overlay.change.chunks;
        overlay.change.chunk_bytes += size_bytes;
      }
    }
    overlay.references[change.db_key] = change.after;
  }
  return absl::OkStatus();
}

absl::Status RocksDbStateStore::Write(rocksdb::WriteBatch& batch, bool sync) {
  rocksdb::WriteOptions write_options;
  write_options.sync = sync;
  MutexLock lock(&log_mutex_);
  if (read_only_) {
    if (absl::Status status = Reopen(); !status.ok()) return status;
  }
  rocksdb::Status written;
  {
    const Use db(this);
    written = db_.Write(write_options, &batch);
    if (written.ok() && sync) durable_sequence_ = db->GetLatestSequenceNumber();
  }
  if (written.ok()) {
    log_is_dirty_ = !sync;
    return absl::OkStatus();
  }
  Reopen().IgnoreError();  // the next write tries again
  return ToStatus(written, "store cannot write");
}

absl::Status RocksDbStateStore::CheckFreeSpace(size_t size_bytes) const {
  if (size_bytes == 0 || options_.min_free_bytes == 0) return absl::OkStatus();
  uint64_t free_bytes = 0;
  if (!options_.env->GetFreeSpace(options_.store.path, &free_bytes).ok()) return absl::OkStatus();
  if (free_bytes >= options_.min_free_bytes + size_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("disk of store ", options_.store.path, " has ",
                                                   free_bytes, " bytes free, ",
                                                   options_.min_free_bytes, " are kept back"));
}

std::unique_ptr<rocksdb::Iterator> RocksDbStateStore::Scan(const Use& db, const std::string& end,
                                                           rocksdb::Slice* end_slice) {
  *end_slice = end;
  rocksdb::ReadOptions read_options;
  read_options.iterate_upper_bound = end_slice;
  return std::unique_ptr<rocksdb::Iterator>(db->NewIterator(read_options));
}

absl::StatusOr<std::vector<ListedRecord>> RocksDbStateStore::List(
    const ListOptions& options) const {
  if (absl::Status status = ValidateListOptions(options); !status.ok()) return status;
  const std::string realm_prefix = RealmPrefix('r', options.realm);
  const std::string end = PrefixEnd(realm_prefix + options.prefix);
  // A name plus NUL is the first possible one after it.
  const std::string start = options.start_after < options.prefix
                                ? realm_prefix + options.prefix
                                : realm_prefix + options.start_after + '\0';
  rocksdb::Slice end_slice;
  const Use db(this);
  if (db.closed()) return Closed();
  const auto it = Scan(db, end, &end_slice);
  std::vector<ListedRecord> listed;
  for (it->Seek(start); it->Valid() && listed.size() < static_cast<size_t>(options.limit);
       it->Next()) {
    std::string name(View(it->key()).substr(realm_prefix.size()));
    absl::StatusOr<Record> record = DecodeRecord(View(it->key()), View(it->value()));
    if (!record.ok()) {
      return absl::DataLossError(
          absl::StrCat("record ", options.realm, "/", name, ": ", record.status().message()));
    }
    listed.push_back({std::move(name), *std::move(record)});
  }
  if (!it->status().ok()) {
    return ToStatus(it->status(), absl::StrCat("list of realm ", options.realm));
  }
  return listed;
}

absl::StatusOr<std::vector<Key>> RocksDbStateStore::Expired(absl::Time now, int limit) const {
  std::vector<Key> keys;
  const int64_t now_ns = ExpiryToNanos(now);
  // Nothing that never expires is in the index, so its end is the end for the infinite future.
  const std::string end = now_ns == kNever ? std::string("y") : ExpiryPrefix(now_ns + 1);
  rocksdb::Slice end_slice;
  const Use db(this);
  if (db.closed()) return Closed();
  const auto it = Scan(db, end, &end_slice);
  for (it->Seek("x"); it->Valid() && keys.size() < static_cast<size_t>(std::max(limit, 0));
       it->Next()) {
    std::string_view rest = View(it->key());
    rest.remove_prefix(std::min(rest.size(), kExpiryPrefixBytes));
    const size_t separator = rest.find('\0');
    if (separator == std::string_view::npos) {
      return absl::DataLossError("an entry of the expiry index is malformed");
    }
    keys.push_back(
        {std::string(rest.substr(0, separator)), std::string(rest.substr(separator + 1))});
  }
  if (!it->status().ok()) return ToStatus(it->status(), "expiry index");
  return keys;
}

absl::StatusOr<std::vector<std::string>> RocksDbStateStore::Realms() const {
  std::vector<std::string> names;
  rocksdb::Slice end_slice;
  const std::string end = "s";
  const Use db(this);
  if (db.closed()) return Closed();
  const auto it = Scan(db, end, &end_slice);
  it->Seek("r");
  while (it->Valid()) {
    const std::string_view rest = View(it->key()).substr(1);
    const size_t separator = rest.find('\0');
    if (separator == std::string_view::npos)
      return absl::DataLossError("a record key is malformed");
    names.emplace_back(rest.substr(0, separator));
    it->Seek(PrefixEnd(RealmPrefix('r', names.back())));
  }
  if (!it->status().ok()) return ToStatus(it->status(), "list of realms");
  return names;
}

absl::StatusOr<StoreStats> RocksDbStateStore::Stats() const {
  StoreStats stats;
  stats.records = records_;
  stats.chunks = chunks_;
  stats.chunk_bytes = chunk_bytes_;
  return stats;
}

absl::Status RocksDbStateStore::Probe() {
  MutexLock lock(&probe_mutex_);  // overlapping probes would read each other's number
  const std::string number = absl::StrCat(++probes_);
  rocksdb::WriteBatch batch;
  PutDurableMark(durable_sequence_, batch);
  batch.Put(kProbeKey, number);
  if (absl::Status status = Write(batch, /*sync=*/true); !status.ok()) return status;
  const Use db(this);
  if (db.closed()) return Closed();
  std::string value;
  const rocksdb::Status found = db->Get(rocksdb::ReadOptions(), kProbeKey, &value);
  if (!found.ok()) return ToStatus(found, "store probe");
  if (value != number) return absl::DataLossError("store probe does not read back what it wrote");
  return absl::OkStatus();
}

void RocksDbStateStore::Keep() {
  for (int period = 1;; ++period) {
    {
      MutexLock lock(&keeper_mutex_);
      if (!stop_) keeper_wakes_.WaitFor(&keeper_mutex_, kLogSyncPeriod);
      if (stop_) return;
    }
    SyncLog();
    if (period % options_.sync_periods_per_gc_check == 0) CollectDeadBlobs();
  }
}

void RocksDbStateStore::SyncLog() {
  MutexLock lock(&log_mutex_);
  if (!log_is_dirty_ && marked_sequence_ == durable_sequence_) return;
  rocksdb::Status status;
  {
    const Use db(this);
    if (db.closed() || read_only_) return;
    if (log_is_dirty_) {
      status = db_.SyncLog();
      if (status.ok()) durable_sequence_ = db->GetLatestSequenceNumber();
    }
    log_is_dirty_ = false;
    // The last commit before a pause has no later one that would tell of it.
    if (status.ok() && marked_sequence_ != durable_sequence_) {
      rocksdb::WriteBatch batch;
      PutDurableMark(durable_sequence_, batch);
      marked_sequence_ = durable_sequence_;
      status = db_.Write(rocksdb::WriteOptions(), &batch);
    }
  }
  if (!status.ok()) Reopen().IgnoreError();  // which writes out what the log may have lost
}

void RocksDbStateStore::CollectDeadBlobs() {
  const Use db(this);
  if (db.closed() || read_only_) return;
  uint64_t blob_bytes = 0;
  if (!db->GetIntProperty(rocksdb::DB::Properties::kLiveBlobFileSize, &blob_bytes)) return;
  const uint64_t live_bytes = std::max<int64_t>(chunk_bytes_, 0);
  if (blob_bytes < 2 * live_bytes + options_.gc_floor_bytes) return;
  rocksdb::CompactRangeOptions compact;
  compact.exclusive_manual_compaction = false;
  compact.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  compact.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  compact.blob_garbage_collection_age_cutoff = 1.0;
  compact.canceled = &cancel_collection_;
  const rocksdb::Slice begin("c"), end("d");
  // A failure leaves the dead bytes for the next round; a failed write shows itself to the writers.
  db->CompactRange(compact, &begin, &end).PermitUncheckedError();
}

}  // namespace

absl::StatusOr<std::unique_ptr<StateStore>> OpenRocksDbStoreInternal(
    const RocksDbInternalOptions& options) {
  if (options.store.path.empty()) return absl::InvalidArgumentError("store path is empty");
  RocksDbInternalOptions resolved = options;
  if (!options.env) {
    resolved.env = rocksdb::Env::Default();
    std::error_code error;
    std::filesystem::create_directories(options.store.path, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("cannot create directory ", options.store.path, ": ", error.message()));
    }
  }
  auto store = std::make_unique<RocksDbStateStore>(resolved);
  if (absl::Status status = store->Start(); !status.ok()) return status;
  return std::unique_ptr<StateStore>(std::move(store));
}

absl::StatusOr<std::unique_ptr<StateStore>> OpenRocksDbStore(const RocksDbOptions& options) {
  RocksDbInternalOptions internal;
  internal.store = options;
  return OpenRocksDbStoreInternal(internal);
}

}  // namespace mneme::memstore
