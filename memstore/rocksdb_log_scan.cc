#include "memstore/rocksdb_log_scan.h"

#include <rocksdb/env.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "memstore/record_codec.h"

namespace mneme::memstore {
namespace {

// The log format, as documented by RocksDB: blocks of 32 KiB of fragments, each
// u32 masked CRC32C of type and bytes | u16 size | u8 type | bytes. A record is one kFull fragment,
// or kFirst kMiddle* kLast. Its bytes are a batch: u64 sequence | u32 count | operations.
constexpr size_t kBlockBytes = 32 << 10;
constexpr size_t kFragmentHeaderBytes = 7;
enum FragmentType : uint8_t { kFull = 1, kFirst = 2, kMiddle = 3, kLast = 4 };
constexpr size_t kBatchHeaderBytes = 12;

// The mark is an operation that changes nothing: tag, size, "sync", u64 sequence.
constexpr char kLogDataTag = 3;
constexpr std::string_view kMarkName = "sync";
constexpr size_t kMarkBytes = 12;
constexpr size_t kBatchPrefixBytes = kBatchHeaderBytes + 2 + kMarkBytes;

uint64_t Load(std::string_view bytes, size_t offset, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < size; ++i) {
    value |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[offset + i])) << (8 * i);
  }
  return value;
}

class Scanner {
 public:
  void BeginLog() { inside_ = false; }

  void Block(std::string_view block) {
    while (block.size() >= kFragmentHeaderBytes) {
      const size_t size = Load(block, 4, 2);
      const auto type = static_cast<uint8_t>(block[6]);
      if (size > block.size() - kFragmentHeaderBytes) return Damaged();
      const uint32_t crc = Crc32c(0, block.substr(6, 1 + size));
      const uint32_t masked = ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
      const std::string_view bytes = block.substr(kFragmentHeaderBytes, size);
      if (masked == Load(block, 0, 4)) {
        Fragment(type, bytes);
      } else {
        Damaged();  // but its size may be right: see what follows
      }
      block.remove_prefix(kFragmentHeaderBytes + size);
    }
    // Less than a header is filled with zeros; at the end of a file there is nothing.
    if (block.find_first_not_of('\0') != std::string_view::npos) Damaged();
  }

  void EndLog() {
    if (inside_) Damaged();
  }

  const LogScan& result() const { return result_; }

 private:
  void Fragment(uint8_t type, std::string_view bytes) {
    if (type < kFull || type > kLast || inside_ != (type == kMiddle || type == kLast)) Damaged();
    if (type == kFull || type == kFirst) {
      prefix_.clear();
      inside_ = true;
    }
    if (!inside_) return;  // the rest of a record whose begin is damaged
    if (prefix_.size() < kBatchPrefixBytes) {
      prefix_.append(bytes.substr(0, kBatchPrefixBytes - prefix_.size()));
    }
    if (type == kFull || type == kLast) {
      inside_ = false;
      Record();
    }
  }

  void Record() {
    if (prefix_.size() < kBatchHeaderBytes) return Damaged();
    const uint64_t sequence = Load(prefix_, 0, 8);
    if (next_sequence_ && *next_sequence_ != sequence) Damaged();
    next_sequence_ = sequence + Load(prefix_, 8, 4);
    const std::string_view operation = std::string_view(prefix_).substr(kBatchHeaderBytes);
    if (operation.size() < 2 + kMarkBytes || operation[0] != kLogDataTag ||
        static_cast<uint8_t>(operation[1]) != kMarkBytes ||
        operation.substr(2, kMarkName.size()) != kMarkName) {
      return;
    }
    result_.durable_sequence =
        std::max(result_.durable_sequence, Load(operation, 2 + kMarkName.size(), 8));
  }

  void Damaged() {
    result_.whole = false;
    inside_ = false;
  }

  LogScan result_;
  bool inside_ = false;  // between a first fragment and its last
  std::string prefix_;   // of the record, as much as holds the mark
  std::optional<uint64_t> next_sequence_;
};

}  // namespace

void PutDurableMark(uint64_t durable_sequence, rocksdb::WriteBatch& batch) {
  std::string mark(kMarkName);
  for (int i = 0; i < 8; ++i) mark.push_back(static_cast<char>(durable_sequence >> (8 * i)));
  batch.PutLogData(mark);
}

absl::StatusOr<LogScan> ScanLogs(rocksdb::Env& env, const std::string& path) {
  const auto error = [&](const rocksdb::Status& status) {
    return absl::UnavailableError(
        absl::StrCat("cannot read the log of store ", path, ": ", status.ToString()));
  };
  std::vector<std::string> names;
  if (rocksdb::Status status = env.GetChildren(path, &names); !status.ok()) return error(status);
  std::vector<uint64_t> logs;
  for (const std::string& name : names) {
    uint64_t number = 0;
    const size_t dot = name.find('.');
    if (dot != std::string::npos && name.substr(dot) == ".log" &&
        absl::SimpleAtoi(name.substr(0, dot), &number)) {
      logs.push_back(number);
    }
  }
  std::sort(logs.begin(), logs.end());

  Scanner scanner;
  std::string buffer(kBlockBytes, '\0');
  for (const uint64_t number : logs) {
    std::string digits = absl::StrCat(number);
    digits.insert(0, digits.size() < 6 ? 6 - digits.size() : 0, '0');
    std::unique_ptr<rocksdb::SequentialFile> file;
    rocksdb::Status status = env.NewSequentialFile(absl::StrCat(path, "/", digits, ".log"), &file,
                                                   rocksdb::EnvOptions());
    if (!status.ok()) return error(status);
    scanner.BeginLog();
    for (;;) {
      size_t filled = 0;
      while (filled < kBlockBytes) {
        rocksdb::Slice read;
        status = file->Read(kBlockBytes - filled, &read, buffer.data() + filled);
        if (!status.ok()) return error(status);
        if (read.empty()) break;
        if (read.data() != buffer.data() + filled) {
          std::copy_n(read.data(), read.size(), buffer.data() + filled);
        }
        filled += read.size();
      }
      scanner.Block(std::string_view(buffer).substr(0, filled));
      if (filled < kBlockBytes) break;
    }
    scanner.EndLog();
  }
  return scanner.result();
}

}  // namespace mneme::memstore
