// One RocksDB database under a store: how it is opened, checked, written and closed, so that what
// recovery finds is always a prefix of the commits, with all that was durable.
//
// Recovery stops at the first damaged log record, which after a power loss is the torn tail. Where
// that would drop a synced commit, because the log rotted in the middle, opening is refused with
// DATA_LOSS and changes nothing (rocksdb_log_scan.h). Not noticed is only damage to the last
// commits before a crash, as long as nothing was written after them: the keeper's note
// (rocksdb_state_store.h) follows within a second.
//
// RocksDB starts a new log file with each memtable, and syncs neither the old file nor its
// directory entry: a power loss could keep a commit of the new log and drop one of the old, and the
// record that refers to a chunk would outlive the chunk. So the old log is synced at each switch,
// before the first byte of the new one.
#pragma once

#include <rocksdb/db.h>

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "memstore/rocksdb_state_store.h"

namespace mneme::memstore {

// RESOURCE_EXHAUSTED for a full disk, DATA_LOSS for damage, else UNAVAILABLE.
absl::Status ToStatus(const rocksdb::Status& status, std::string_view what);

// Not thread-safe, except get() and what the DB itself allows.
class RocksDbDatabase {
 public:
  // options.env must be set.
  explicit RocksDbDatabase(const RocksDbInternalOptions& options);
  ~RocksDbDatabase() { Close(); }

  // Recovers; writes or checks the format record. All that it recovers is in tables then, durable.
  // UNAVAILABLE (in use by another process, I/O), FAILED_PRECONDITION (not a store of this format),
  // DATA_LOSS.
  absl::Status Open();
  // As far as recovery gets without writing anything. Leaves it closed on failure.
  void OpenForReading();
  void Close();

  // Null while closed.
  rocksdb::DB* get() const { return db_.get(); }

  // As DB::Write() and DB::SyncWAL(), and fails too where an earlier log may have stayed unsynced:
  // then nothing more may be written before the next Open(). One caller at a time, open for
  // writing.
  rocksdb::Status Write(const rocksdb::WriteOptions& options, rocksdb::WriteBatch* batch);
  rocksdb::Status SyncLog();

 private:
  class Listener;

  absl::Status CheckLog() const;
  absl::Status CheckFormat(rocksdb::DB& db) const;

  const std::string path_;
  const std::shared_ptr<Listener> listener_;
  const rocksdb::Options options_;
  std::unique_ptr<rocksdb::DB> db_;
};

}  // namespace mneme::memstore
