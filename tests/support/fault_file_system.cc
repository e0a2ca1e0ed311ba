#include "tests/support/fault_file_system.h"

#include <rocksdb/system_clock.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

namespace mneme::testing {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

class FaultWritableFile : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  FaultWritableFile(FaultFileSystem* fs, std::string name,
                    std::unique_ptr<rocksdb::FSWritableFile> target)
      : FSWritableFileOwnerWrapper(std::move(target)), fs_(fs), name_(std::move(name)) {}

  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* debug) override {
    IOStatus status = fs_->CheckWrite();
    Slice written = data;
    if (!status.ok()) {
      std::lock_guard<std::mutex> lock(fs_->mutex_);
      if (!fs_->powered_ || !fs_->Coin()) return status;
      written = Slice(data.data(), data.size() / 2);
    }
    const IOStatus appended = FSWritableFileOwnerWrapper::Append(written, options, debug);
    std::lock_guard<std::mutex> lock(fs_->mutex_);
    fs_->files_[name_].size_bytes += written.size();
    fs_->appended_bytes_ += written.size();
    return status.ok() ? appended : status;
  }
  IOStatus Append(const Slice& data, const IOOptions& options, const rocksdb::DataVerificationInfo&,
                  IODebugContext* debug) override {
    return Append(data, options, debug);
  }
  IOStatus Truncate(uint64_t size, const IOOptions& options, IODebugContext* debug) override {
    if (IOStatus status = fs_->CheckChange(); !status.ok()) return status;
    return FSWritableFileOwnerWrapper::Truncate(size, options, debug);
  }
  IOStatus Sync(const IOOptions&, IODebugContext*) override {
    if (IOStatus status = fs_->CheckWrite(); !status.ok()) return status;
    std::lock_guard<std::mutex> lock(fs_->mutex_);
    auto& file = fs_->files_[name_];
    file.synced_bytes = file.size_bytes;
    ++fs_->syncs_;
    return IOStatus::OK();
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return Sync(options, debug);
  }
  IOStatus RangeSync(uint64_t, uint64_t, const IOOptions&, IODebugContext*) override {
    return IOStatus::OK();
  }

 private:
  FaultFileSystem* const fs_;
  const std::string name_;
};

class FaultDirectory : public rocksdb::FSDirectoryWrapper {
 public:
  FaultDirectory(FaultFileSystem* fs, std::string name,
                 std::unique_ptr<rocksdb::FSDirectory> target)
      : FSDirectoryWrapper(std::move(target)), fs_(fs), name_(std::move(name)) {}

  IOStatus Fsync(const IOOptions&, IODebugContext*) override {
    if (IOStatus status = fs_->CheckWrite(); !status.ok()) return status;
    std::lock_guard<std::mutex> lock(fs_->mutex_);
    for (auto& [name, file] : fs_->files_) {
      if (name.compare(0, name_.size(), name_) == 0) file.entry_synced = true;
    }
    std::erase_if(fs_->unsynced_renames_, [&](const FaultFileSystem::Rename& rename) {
      return rename.to.compare(0, name_.size(), name_) == 0;
    });
    return IOStatus::OK();
  }
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* debug,
                               const rocksdb::DirFsyncOptions&) override {
    return Fsync(options, debug);
  }

 private:
  FaultFileSystem* const fs_;
  const std::string name_;
};

void FaultFileSystem::FailWritesAfter(int n, IOStatus error) {
  std::lock_guard<std::mutex> lock(mutex_);
  writes_until_failure_ = n - 1;
  error_ = std::move(error);
}

void FaultFileSystem::PowerOff() {
  std::lock_guard<std::mutex> lock(mutex_);
  powered_ = false;
  tables_stall_ = false;
  tables_go_on_.notify_all();
}

void FaultFileSystem::StallTables() {
  std::lock_guard<std::mutex> lock(mutex_);
  tables_stall_ = true;
}

void FaultFileSystem::Heal() {
  std::lock_guard<std::mutex> lock(mutex_);
  writes_until_failure_ = -1;
}

int64_t FaultFileSystem::syncs() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return syncs_;
}

int64_t FaultFileSystem::appended_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return appended_bytes_;
}

uint64_t FaultFileSystem::LoseUnsynced() {
  namespace stdfs = std::filesystem;
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = unsynced_renames_.rbegin(); it != unsynced_renames_.rend(); ++it) {
    if (Coin() || !stdfs::exists(it->to)) continue;
    stdfs::rename(it->to, it->from);
    if (const auto node = files_.extract(it->to); !node.empty()) files_[it->from] = node.mapped();
    if (it->overwritten) std::ofstream(it->to, std::ios::binary) << *it->overwritten;
  }
  unsynced_renames_.clear();
  uint64_t lost_bytes = 0;
  for (auto& [name, file] : files_) {
    if (!stdfs::exists(name)) continue;
    if (!file.entry_synced && Coin()) {
      lost_bytes += file.size_bytes;
      stdfs::remove(name);
      continue;
    }
    uint64_t kept = file.synced_bytes;
    if (file.size_bytes > kept && Coin()) {
      random_ = random_ * 6364136223846793005u + 1442695040888963407u;
      kept += (random_ >> 33) % (file.size_bytes - kept + 1);
    }
    lost_bytes += file.size_bytes - kept;
    stdfs::resize_file(name, kept);
  }
  files_.clear();
  powered_ = true;
  writes_until_failure_ = -1;
  return lost_bytes;
}

IOStatus FaultFileSystem::NewWritableFile(const std::string& name,
                                          const rocksdb::FileOptions& options,
                                          std::unique_ptr<rocksdb::FSWritableFile>* file,
                                          IODebugContext* debug) {
  if (IOStatus status = CheckChange(); !status.ok()) return status;
  if (name.ends_with(".sst")) {
    std::unique_lock<std::mutex> lock(mutex_);
    tables_go_on_.wait(lock, [this] { return !tables_stall_ || !powered_; });
    if (!powered_) return IOStatus::IOError("power is off");
  }
  std::unique_ptr<rocksdb::FSWritableFile> target;
  IOStatus status = FileSystemWrapper::NewWritableFile(name, options, &target, debug);
  if (!status.ok()) return status;
  std::lock_guard<std::mutex> lock(mutex_);
  files_[name] = FileState();
  *file = std::make_unique<FaultWritableFile>(this, name, std::move(target));
  return status;
}

// The store neither appends to old files nor recycles logs: not modelled, so refused.
IOStatus FaultFileSystem::ReopenWritableFile(const std::string&, const rocksdb::FileOptions&,
                                             std::unique_ptr<rocksdb::FSWritableFile>*,
                                             IODebugContext*) {
  return IOStatus::NotSupported("reopening a file for writing");
}
IOStatus FaultFileSystem::ReuseWritableFile(const std::string&, const std::string&,
                                            const rocksdb::FileOptions&,
                                            std::unique_ptr<rocksdb::FSWritableFile>*,
                                            IODebugContext*) {
  return IOStatus::NotSupported("reusing a file for writing");
}

IOStatus FaultFileSystem::NewDirectory(const std::string& name, const IOOptions& options,
                                       std::unique_ptr<rocksdb::FSDirectory>* directory,
                                       IODebugContext* debug) {
  std::unique_ptr<rocksdb::FSDirectory> target;
  IOStatus status = FileSystemWrapper::NewDirectory(name, options, &target, debug);
  if (status.ok()) *directory = std::make_unique<FaultDirectory>(this, name, std::move(target));
  return status;
}

IOStatus FaultFileSystem::RenameFile(const std::string& from, const std::string& to,
                                     const IOOptions& options, IODebugContext* debug) {
  if (IOStatus status = CheckChange(); !status.ok()) return status;
  Rename rename{from, to, std::nullopt};
  if (std::ifstream old(to, std::ios::binary); old) {
    rename.overwritten.emplace(std::istreambuf_iterator<char>(old),
                               std::istreambuf_iterator<char>());
  }
  IOStatus status = FileSystemWrapper::RenameFile(from, to, options, debug);
  if (!status.ok()) return status;
  std::lock_guard<std::mutex> lock(mutex_);
  if (auto node = files_.extract(from); !node.empty()) {
    node.mapped().entry_synced = true;  // the rename is what may be lost
    files_[to] = node.mapped();
    unsynced_renames_.push_back(std::move(rename));
  }
  return status;
}

IOStatus FaultFileSystem::DeleteFile(const std::string& name, const IOOptions& options,
                                     IODebugContext* debug) {
  if (IOStatus status = CheckChange(); !status.ok()) return status;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    files_.erase(name);
  }
  return FileSystemWrapper::DeleteFile(name, options, debug);
}

IOStatus FaultFileSystem::CheckWrite() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!powered_) return IOStatus::IOError("power is off");
  if (writes_until_failure_ == 0) return error_;
  if (writes_until_failure_ > 0) --writes_until_failure_;
  return IOStatus::OK();
}

IOStatus FaultFileSystem::CheckChange() {
  std::lock_guard<std::mutex> lock(mutex_);
  return powered_ ? IOStatus::OK() : IOStatus::IOError("power is off");
}

bool FaultFileSystem::Coin() {
  random_ = random_ * 6364136223846793005u + 1442695040888963407u;
  return (random_ >> 40) & 1;
}

namespace {

class ImpatientClock : public rocksdb::SystemClockWrapper {
 public:
  ImpatientClock() : SystemClockWrapper(rocksdb::SystemClock::Default()) {}
  const char* Name() const override { return "ImpatientClock"; }
  void SleepForMicroseconds(int micros) override {
    SystemClockWrapper::SleepForMicroseconds(std::min(micros, 1000));
  }
};

class FaultEnv : public rocksdb::EnvWrapper {
 public:
  explicit FaultEnv(const std::shared_ptr<FaultFileSystem>& fs)
      : EnvWrapper(rocksdb::NewCompositeEnv(fs)) {
    system_clock_ = std::make_shared<ImpatientClock>();
  }
  const char* Name() const override { return "FaultEnv"; }
};

}  // namespace

std::unique_ptr<rocksdb::Env> NewFaultEnv(const std::shared_ptr<FaultFileSystem>& fs) {
  return std::make_unique<FaultEnv>(fs);
}

}  // namespace mneme::testing
