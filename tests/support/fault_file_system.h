// A RocksDB file system that can lose power and fail writes.
//
// It passes everything through to the system's files, but a sync only notes how long a file was:
// LoseUnsynced() then cuts every file to its last synced length (or somewhere into the unsynced
// tail, as a disk may have written some of it), and undoes creations and renames whose directory
// was not synced since, each by a coin. So a test proves what fsync order the store relies on,
// which killing the process does not.
//
// Thread-safe. A lost deletion is not modelled.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace mneme::testing {

class FaultFileSystem : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultFileSystem(uint64_t seed)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), random_(seed) {}

  // The n-th append or sync from now (1: the next) and all after it fail with `error` until Heal().
  // A failing append may still write a part.
  void FailWritesAfter(int n, rocksdb::IOStatus error);
  // From now on every change fails, until LoseUnsynced().
  void PowerOff();
  // No table file is begun any more until PowerOff(), as on a very slow disk: the logs pile up.
  void StallTables();
  void Heal();
  // Call with no file open. Returns how many bytes were cut off.
  uint64_t LoseUnsynced();
  // Appends and syncs so far, and bytes appended.
  int64_t syncs() const;
  int64_t appended_bytes() const;

  // FileSystem.
  const char* Name() const override { return "FaultFileSystem"; }
  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus ReopenWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                       std::unique_ptr<rocksdb::FSWritableFile>* file,
                                       rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus ReuseWritableFile(const std::string& name, const std::string& old_name,
                                      const rocksdb::FileOptions& options,
                                      std::unique_ptr<rocksdb::FSWritableFile>* file,
                                      rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus NewDirectory(const std::string& name, const rocksdb::IOOptions& options,
                                 std::unique_ptr<rocksdb::FSDirectory>* directory,
                                 rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus RenameFile(const std::string& from, const std::string& to,
                               const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus DeleteFile(const std::string& name, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override;

 private:
  friend class FaultWritableFile;
  friend class FaultDirectory;
  struct FileState {
    uint64_t size_bytes = 0;
    uint64_t synced_bytes = 0;
    bool entry_synced = false;
  };
  struct Rename {
    std::string from, to;
    std::optional<std::string> overwritten;  // content of `to` before
  };

  rocksdb::IOStatus CheckWrite();
  rocksdb::IOStatus CheckChange();
  bool Coin();

  mutable std::mutex mutex_;
  uint64_t random_;
  bool powered_ = true;
  bool tables_stall_ = false;
  std::condition_variable tables_go_on_;
  int64_t writes_until_failure_ = -1;  // -1: none planned, 0: failing
  rocksdb::IOStatus error_;
  int64_t syncs_ = 0;
  int64_t appended_bytes_ = 0;
  std::map<std::string, FileState> files_;
  std::vector<Rename> unsynced_renames_;
};

// An Env on `fs` whose clock sleeps at most a millisecond. RocksDB sleeps a second after each
// failed flush or compaction, and a close waits for that: most of the time of a test that injects
// faults.
std::unique_ptr<rocksdb::Env> NewFaultEnv(const std::shared_ptr<FaultFileSystem>& fs);

}  // namespace mneme::testing
