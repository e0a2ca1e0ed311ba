#include "memstore/rocksdb_state_store.h"

#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <filesystem>
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
#include "memstore/rocksdb_group.h"
#include "memstore/rocksdb_keys.h"
#include "memstore/rocksdb_log_scan.h"
#include "memstore/state_store.h"
#include "memstore/validate.h"

namespace mneme::memstore {
namespace {

constexpr std::chrono::milliseconds kLogSyncPeriod{500};

std::string_view View(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

class RocksDbStateStore : public StateStore, private StoredEntries {
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
  absl::Status KeepTotals(TallyFn tally) override;
  absl::StatusOr<std::vector<Total>> Totals(const std::string& realm) const override;
  absl::StatusOr<std::vector<std::string>> Realms() const override;
  absl::StatusOr<StoreStats> Stats() const override;
  absl::Status Probe() override;

 private:
  // A committer in the queue; lives on its stack.
  struct Committer {
    Committer(const Transaction& transaction, TallyFn tally) : prepared(transaction, tally) {}

    const PreparedTransaction prepared;
    absl::Status result;
    bool done = false;
    CondVar wake;
  };
  void Lead(const std::vector<Committer*>& group);
  absl::StatusOr<ChunkReference> GetReference(const std::string& db_key,
                                              const ChunkId& id) const override;
  absl::Status Write(rocksdb::WriteBatch& batch, bool sync);
  // A database that stays open while it is used. Never take two in one thread.
  class Use {
   public:
    explicit Use(const RocksDbStateStore* store) : lock_(store->db_mutex_), db_(store->db_.get()) {}
    rocksdb::DB* operator->() const { return db_; }
    rocksdb::DB& operator*() const { return *db_; }
    bool closed() const { return db_ == nullptr; }

   private:
    std::shared_lock<std::shared_mutex> lock_;
    rocksdb::DB* const db_;
  };
  static absl::Status Closed() {
    return absl::UnavailableError("store could not be opened again after a failed write");
  }

  // Opens, reads or writes the format record, learns what is there. With db_mutex_ held alone.
  absl::Status OpenDatabase();
  // From the entries that each commit brings up to date; by counting, if there are none yet or they
  // are damaged.
  void ReadFigures(rocksdb::DB& db);
  bool ReadTotals(rocksdb::DB& db) ABSL_EXCLUSIVE_LOCKS_REQUIRED(figures_mutex_);
  void Count(rocksdb::DB& db) ABSL_EXCLUSIVE_LOCKS_REQUIRED(figures_mutex_);
  // As they are after `commits`, into its batch.
  void PutFigures(CommitGroup& commits);
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

  TallyFn tally_ = nullptr;  // set before the first commit
  mutable Mutex figures_mutex_;
  StoreStats stats_ ABSL_GUARDED_BY(figures_mutex_);
  TotalsTable totals_ ABSL_GUARDED_BY(figures_mutex_);
  // What the database has of them is right; else all are written with the next commit.
  bool totals_stored_ ABSL_GUARDED_BY(figures_mutex_) = false;
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
  ReadFigures(*db_.get());
  durable_sequence_ = db_.get()->GetLatestSequenceNumber();  // recovery wrote the log to tables
  read_only_ = false;
  return absl::OkStatus();
}

void RocksDbStateStore::ReadFigures(rocksdb::DB& db) {
  MutexLock lock(&figures_mutex_);
  std::string value;
  if (db.Get(rocksdb::ReadOptions(), kFiguresKey, &value).ok()) {
    const absl::StatusOr<Figures> figures = DecodeFigures(kFiguresKey, value);
    if (figures.ok() && figures->totals_kept && ReadTotals(db)) {
      stats_ = figures->stats;
      totals_stored_ = true;
      return;
    }
  }
  Count(db);
}

bool RocksDbStateStore::ReadTotals(rocksdb::DB& db) {
  totals_ = {};
  std::unique_ptr<rocksdb::Iterator> it(db.NewIterator(rocksdb::ReadOptions()));
  for (it->Seek("t"); it->Valid() && it->key()[0] == 't'; it->Next()) {
    const auto key = KeyOfTotal(View(it->key()));
    const auto sum = DecodeTotal(View(it->key()), View(it->value()));
    if (!key || !sum.ok()) return false;
    totals_.Change(key->first, key->second, *sum);
  }
  return it->status().ok();
}

void RocksDbStateStore::Count(rocksdb::DB& db) {
  // A damaged entry or block is no reason to refuse the rest of the store: whoever reads it is
  // told. The figures are then too low.
  stats_ = {};
  totals_ = {};
  totals_stored_ = false;
  std::unique_ptr<rocksdb::Iterator> it(db.NewIterator(rocksdb::ReadOptions()));
  for (it->Seek("r"); it->Valid() && it->key()[0] == 'r'; it->Next()) {
    ++stats_.records;
    if (tally_ == nullptr) continue;
    const std::optional<Key> key = KeyOfRecord(View(it->key()));
    const absl::StatusOr<Record> record = DecodeRecord(View(it->key()), View(it->value()));
    if (key && record.ok()) totals_.Add(key->realm, tally_(*key, record->value));
  }
  for (it->Seek("f"); it->Valid() && it->key()[0] == 'f'; it->Next()) {
    ++stats_.chunks;
    const auto reference = DecodeReference(View(it->key()), View(it->value()));
    if (reference.ok()) stats_.chunk_bytes += reference->size_bytes;
  }
}

void RocksDbStateStore::PutFigures(CommitGroup& commits) {
  const Use db(this);
  if (db.closed()) return;  // the write will say so
  rocksdb::WriteBatch& batch = commits.batch();
  const auto put = [&](const TotalsTable::Sums::key_type& key, const TotalsTable::Sum& sum) {
    const std::string db_key = TotalKey(key.first, key.second);
    if (sum == TotalsTable::Sum{}) {
      batch.Delete(db_key);
    } else {
      batch.Put(db_key, EncodeTotal(db_key, sum));
    }
  };
  MutexLock lock(&figures_mutex_);
  const StoreStats& change = commits.change();
  const Figures figures{.stats = {stats_.records + change.records, stats_.chunks + change.chunks,
                                  stats_.chunk_bytes + change.chunk_bytes},
                        .totals_kept = tally_ != nullptr};
  batch.Put(kFiguresKey, EncodeFigures(kFiguresKey, figures));
  if (totals_stored_) {
    for (const auto& [key, by] : commits.totals_change().sums()) {
      TotalsTable::Sum sum = totals_.SumOf(key);
      sum.records += by.records;
      sum.amount += by.amount;
      put(key, sum);
    }
  } else if (tally_ != nullptr) {
    const std::unique_ptr<rocksdb::Iterator> it(db->NewIterator(rocksdb::ReadOptions()));
    for (it->Seek("t"); it->Valid() && it->key()[0] == 't'; it->Next()) batch.Delete(it->key());
    TotalsTable after = totals_;
    after.Add(commits.totals_change());
    for (const auto& [key, sum] : after.sums()) put(key, sum);
  }
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
  if (db_.get()) ReadFigures(*db_.get());
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
      db->Get(rocksdb::ReadOptions(), db->DefaultColumnFamily(), ChunkKey(realm, id), &bytes);
  if (found.IsNotFound()) return ChunkNotFound(id);
  if (!found.ok()) return ToStatus(found, absl::StrCat("chunk ", ChunkText(id)));
  if (HashChunk(bytes) != id) return ChunkDamaged(realm, id);
  return bytes;
}

absl::Status RocksDbStateStore::Commit(const Transaction& transaction) {
  if (absl::Status status = ValidateTransaction(transaction); !status.ok()) return status;
  if (transaction.puts.empty() && transaction.deletes.empty()) return absl::OkStatus();
  Committer self(transaction, tally_);
  std::vector<Committer*> group;
  {
    MutexLock lock(&queue_mutex_);
    queue_.push_back(&self);
    while (!self.done && queue_.front() != &self) self.wake.Wait(&queue_mutex_);
    if (self.done) return self.result;
    size_t size_bytes = 0;
    for (Committer* committer : queue_) {
      if (!group.empty() && (committer->prepared.transaction->sync != transaction.sync ||
                             size_bytes + committer->prepared.size_bytes > options_.group_bytes)) {
        break;
      }
      group.push_back(committer);
      size_bytes += committer->prepared.size_bytes;
    }
  }
  Lead(group);
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

// Fills in the results; wakes nobody.
void RocksDbStateStore::Lead(const std::vector<Committer*>& group) {
  size_t size_bytes = 0;
  for (const Committer* committer : group) size_bytes += committer->prepared.size_bytes;
  CommitGroup commits(*this, tally_, size_bytes);
  PutDurableMark(durable_sequence_, commits.batch());
  std::vector<Committer*> accepted;
  for (Committer* committer : group) {
    const PreparedTransaction& prepared = committer->prepared;
    committer->result = CheckFreeSpace(prepared.Grows() ? prepared.size_bytes : 0);
    if (!committer->result.ok()) continue;
    committer->result = commits.Add(prepared);
    if (committer->result.ok()) accepted.push_back(committer);
  }
  if (accepted.empty()) return;
  PutFigures(commits);
  const absl::Status written = Write(commits.batch(), group[0]->prepared.transaction->sync);
  for (Committer* committer : accepted) committer->result = written;
  if (!written.ok()) return;
  MutexLock lock(&figures_mutex_);
  stats_.records += commits.change().records;
  stats_.chunks += commits.change().chunks;
  stats_.chunk_bytes += commits.change().chunk_bytes;
  totals_.Add(commits.totals_change());
  totals_stored_ = tally_ != nullptr;
}

absl::StatusOr<ChunkReference> RocksDbStateStore::GetReference(const std::string& db_key,
                                                               const ChunkId& id) const {
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
  const std::string end = now_ns == kNeverExpires ? std::string("y") : ExpiryPrefix(now_ns + 1);
  rocksdb::Slice end_slice;
  const Use db(this);
  if (db.closed()) return Closed();
  const auto it = Scan(db, end, &end_slice);
  for (it->Seek("x"); it->Valid() && keys.size() < static_cast<size_t>(std::max(limit, 0));
       it->Next()) {
    std::optional<Key> key = KeyOfExpiry(View(it->key()));
    if (!key) return absl::DataLossError("an entry of the expiry index is malformed");
    keys.push_back(*std::move(key));
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
    std::optional<Key> key = KeyOfRecord(View(it->key()));
    if (!key) return absl::DataLossError("a record key is malformed");
    names.push_back(std::move(key->realm));
    it->Seek(PrefixEnd(RealmPrefix('r', names.back())));
  }
  if (!it->status().ok()) return ToStatus(it->status(), "list of realms");
  return names;
}

absl::Status RocksDbStateStore::KeepTotals(TallyFn tally) {
  const Use db(this);
  if (db.closed()) return Closed();
  MutexLock lock(&figures_mutex_);
  tally_ = tally;
  if (!totals_stored_) Count(*db);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Total>> RocksDbStateStore::Totals(const std::string& realm) const {
  if (tally_ == nullptr) return std::vector<Total>();
  MutexLock lock(&figures_mutex_);
  return totals_.Of(realm);
}

absl::StatusOr<StoreStats> RocksDbStateStore::Stats() const {
  MutexLock lock(&figures_mutex_);
  return stats_;
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
  const auto live_bytes = static_cast<uint64_t>(std::max<int64_t>(Stats()->chunk_bytes, 0));
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
