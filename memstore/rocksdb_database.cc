#include "memstore/rocksdb_database.h"

#include <rocksdb/cache.h>
#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/listener.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "memstore/mutex.h"
#include "memstore/record_codec.h"
#include "memstore/rocksdb_log_scan.h"

namespace mneme::memstore {

class RocksDbDatabase::Listener : public rocksdb::EventListener {
 public:
  // RocksDB would poll for space every five seconds, and a close would wait for that. The owner
  // closes and opens anew.
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status,
                            bool* auto_recovery) override {
    *auto_recovery = false;
  }

  // After the new log file exists, before anything is written to it; no lock of RocksDB is held,
  // and no write runs.
  void OnMemTableSealed(const rocksdb::MemTableInfo&) override { SyncLog().PermitUncheckedError(); }

  void Watch(rocksdb::DB* db) {
    MutexLock lock(&mutex_);
    db_ = db;
    failed_ = false;
  }

  // Until the next Watch() a failure is final: RocksDB must not touch a log again whose sync has
  // failed (its assertions, which Debian compiles in, would end the process).
  rocksdb::Status SyncLog() {
    MutexLock lock(&mutex_);
    if (failed_) return Failure();
    if (!db_) return rocksdb::Status::OK();
    rocksdb::Status synced = db_->SyncWAL();
    failed_ = !synced.ok();
    return synced;
  }

  rocksdb::Status status() {
    MutexLock lock(&mutex_);
    return failed_ ? Failure() : rocksdb::Status::OK();
  }

 private:
  static rocksdb::Status Failure() {
    return rocksdb::Status::IOError("the write-ahead log could not be synced");
  }

  Mutex mutex_;
  rocksdb::DB* db_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
};

namespace {

constexpr char kFormatKey[] = "mformat";

absl::Status ToOpenStatus(const rocksdb::Status& status, const std::string& path) {
  // RocksDB has no code of its own for a held lock; the message names the file in each of its
  // cases.
  if (status.IsIOError() && status.ToString().find("/LOCK:") != std::string::npos) {
    return absl::UnavailableError(
        absl::StrCat("store ", path, " is open in another process: ", status.ToString()));
  }
  if (status.IsInvalidArgument()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "directory ", path, " holds a database that this version cannot use: ", status.ToString()));
  }
  const std::string what = absl::StrCat("cannot open store ", path);
  if (status.IsPathNotFound()) {  // a file that the manifest names is gone
    return absl::DataLossError(absl::StrCat(what, ": ", status.ToString()));
  }
  return ToStatus(status, what);
}

rocksdb::Options DatabaseOptions(const RocksDbInternalOptions& options,
                                 std::shared_ptr<rocksdb::EventListener> listener) {
  rocksdb::Options db_options;
  db_options.env = options.env;
  db_options.create_if_missing = true;
  db_options.paranoid_checks = true;
  db_options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;  // see log_scan.h
  db_options.listeners.push_back(std::move(listener));
  db_options.max_bgerror_resume_count = 0;
  db_options.max_background_jobs = 2;
  db_options.max_open_files = 512;
  db_options.info_log_level = rocksdb::InfoLogLevel::WARN_LEVEL;
  db_options.max_log_file_size = 4 << 20;
  db_options.keep_log_file_num = 4;
  db_options.write_buffer_size = options.write_buffer_bytes;
  db_options.max_write_buffer_number = 3;
  db_options.compression = rocksdb::kNoCompression;  // states are noise; zstd is the snapshot's own
  db_options.enable_blob_files = true;
  db_options.min_blob_size = 64 << 10;
  db_options.enable_blob_garbage_collection = false;  // see the header
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(options.store.block_cache_bytes);
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.cache_index_and_filter_blocks = true;
  table.pin_l0_filter_and_index_blocks_in_cache = true;
  db_options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return db_options;
}

}  // namespace

absl::Status ToStatus(const rocksdb::Status& status, std::string_view what) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(std::string(what), ": ", status.ToString());
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(message);
  if (status.IsCorruption()) return absl::DataLossError(message);
  return absl::UnavailableError(message);
}

RocksDbDatabase::RocksDbDatabase(const RocksDbInternalOptions& options)
    : path_(options.store.path),
      listener_(std::make_shared<Listener>()),
      options_(DatabaseOptions(options, listener_)) {}

absl::Status RocksDbDatabase::Open() {
  if (absl::Status status = CheckLog(); !status.ok()) return status;
  rocksdb::DB* raw = nullptr;
  const rocksdb::Status opened = rocksdb::DB::Open(options_, path_, &raw);
  if (!opened.ok()) return ToOpenStatus(opened, path_);
  std::unique_ptr<rocksdb::DB> db(raw);
  if (absl::Status status = CheckFormat(*db); !status.ok()) return status;
  db_ = std::move(db);
  listener_->Watch(db_.get());
  return absl::OkStatus();
}

void RocksDbDatabase::OpenForReading() {
  rocksdb::DB* raw = nullptr;
  if (rocksdb::DB::OpenForReadOnly(options_, path_, &raw).ok()) db_.reset(raw);
}

void RocksDbDatabase::Close() {
  if (!db_) return;
  db_->Close().PermitUncheckedError();
  listener_->Watch(nullptr);
  db_.reset();
}

rocksdb::Status RocksDbDatabase::Write(const rocksdb::WriteOptions& options,
                                       rocksdb::WriteBatch* batch) {
  // The sync is a call of its own: this write may have switched the log, and failed to sync the
  // old.
  rocksdb::WriteOptions unsynced = options;
  unsynced.sync = false;
  if (rocksdb::Status written = db_->Write(unsynced, batch); !written.ok()) return written;
  return options.sync ? listener_->SyncLog() : listener_->status();
}

rocksdb::Status RocksDbDatabase::SyncLog() { return listener_->SyncLog(); }

// Before recovery, which overwrites the evidence: will it find all that was durable?
absl::Status RocksDbDatabase::CheckLog() const {
  const std::string& path = path_;
  rocksdb::Env& env = *options_.env;
  if (!env.FileExists(path + "/CURRENT").ok()) return absl::OkStatus();
  rocksdb::FileLock* file_lock = nullptr;
  if (!env.LockFile(path + "/LOCK", &file_lock).ok()) return absl::OkStatus();  // Open tells why
  absl::Status status;
  const absl::StatusOr<LogScan> scan = ScanLogs(env, path);
  if (!scan.ok()) {
    status = scan.status();
  } else if (!scan->whole) {
    rocksdb::DB* raw = nullptr;
    const rocksdb::Status opened = rocksdb::DB::OpenForReadOnly(options_, path, &raw);
    const std::unique_ptr<rocksdb::DB> db(raw);
    if (!opened.ok()) {
      status = ToOpenStatus(opened, path);
    } else if (db->GetLatestSequenceNumber() < scan->durable_sequence) {
      status = absl::DataLossError(absl::StrCat(
          "the write-ahead log of store ", path, " is damaged: ", scan->durable_sequence,
          " writes were durable, ", db->GetLatestSequenceNumber(),
          " can be recovered. Nothing was changed; restore the directory from a copy"));
    }
  }
  env.UnlockFile(file_lock).PermitUncheckedError();
  return status;
}

absl::Status RocksDbDatabase::CheckFormat(rocksdb::DB& db) const {
  std::string value;
  const rocksdb::Status found = db.Get(rocksdb::ReadOptions(), kFormatKey, &value);
  if (!found.ok() && !found.IsNotFound()) return ToOpenStatus(found, path_);
  bool empty = false;
  if (found.IsNotFound()) {  // only then: the first key is a chunk, which may be large or damaged
    std::unique_ptr<rocksdb::Iterator> it(db.NewIterator(rocksdb::ReadOptions()));
    it->SeekToFirst();
    empty = !it->Valid();
    if (!it->status().ok()) return ToOpenStatus(it->status(), path_);
  }
  bool write = empty;
  if (!empty) {
    if (found.IsNotFound()) {
      return absl::FailedPreconditionError(
          absl::StrCat("directory ", path_, " holds a RocksDB database that is not a memstore"));
    }
    const auto load = [&](size_t offset) {
      uint32_t number = 0;
      for (int i = 0; i < 4; ++i) {
        number |= static_cast<uint32_t>(static_cast<uint8_t>(value[offset + i])) << (8 * i);
      }
      return number;
    };
    if (value.size() != 8 ||
        Crc32c(Crc32c(0, kFormatKey), std::string_view(value).substr(0, 4)) != load(4)) {
      return absl::DataLossError(absl::StrCat("the format record of store ", path_, " is damaged"));
    }
    write = load(0) < kStoreFormat;
    if (load(0) < kOldestStoreFormat || load(0) > kStoreFormat) {
      return absl::FailedPreconditionError(
          absl::StrCat("store ", path_, " has format ", load(0), ", this version reads format ",
                       kStoreFormat, load(0) > kStoreFormat ? "; a newer version wrote it" : ""));
    }
  }
  if (!write) return absl::OkStatus();
  value.assign(4, '\0');
  for (int i = 0; i < 4; ++i) value[i] = static_cast<char>(kStoreFormat >> (8 * i));
  const uint32_t crc = Crc32c(Crc32c(0, kFormatKey), value);
  for (int i = 0; i < 4; ++i) value.push_back(static_cast<char>(crc >> (8 * i)));
  rocksdb::WriteBatch batch;
  batch.Put(kFormatKey, value);
  rocksdb::WriteOptions write_options;
  write_options.sync = true;
  const rocksdb::Status written = db.Write(write_options, &batch);
  return written.ok() ? absl::OkStatus() : ToOpenStatus(written, path_);
}

}  // namespace mneme::memstore
