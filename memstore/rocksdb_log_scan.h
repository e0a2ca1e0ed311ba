// Reads RocksDB's write-ahead logs for what its recovery does not tell: whether it would drop
// commits that were durable.
//
// RocksDB offers either to stop at the first damaged record, silently dropping synced commits after
// it (kPointInTimeRecovery), or to go on with the next log file (kTolerateCorruptedTailRecords),
// which after a power loss keeps a commit and drops an earlier one, so that a record may refer to a
// chunk that is gone. The store stops, and decides by *marks* whether that lost anything: each
// write batch begins with a note of the sequence number up to which the log was synced when it was
// written. A note of more than what recovery finds proves a loss; damage without one is the torn
// tail of a power loss.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace rocksdb {
class Env;
class WriteBatch;
}  // namespace rocksdb

namespace mneme::memstore {

// To be called on an empty batch.
void PutDurableMark(uint64_t durable_sequence, rocksdb::WriteBatch& batch);

struct LogScan {
  uint64_t durable_sequence = 0;  // the highest intact mark, 0 without any
  // Every record is intact and follows the one before it. Then recovery drops nothing.
  bool whole = true;
};

// All logs of the database directory `path`, which no process may be writing. Hostile bytes are
// fine. UNAVAILABLE if a file cannot be read.
absl::StatusOr<LogScan> ScanLogs(rocksdb::Env& env, const std::string& path);

}  // namespace mneme::memstore
