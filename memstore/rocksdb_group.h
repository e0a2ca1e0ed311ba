// One group of commits on its way into one RocksDB batch: each transaction is checked against what
// is stored and what the group's earlier ones changed, and joins the batch whole or not at all.
#pragma once

#include <rocksdb/write_batch.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memstore/record_codec.h"
#include "memstore/state_store.h"
#include "memstore/totals.h"

namespace mneme::memstore {

// A transaction with its records encoded, which needs no lock. Refers to the transaction.
struct PreparedTransaction {
  struct PreparedPut {
    const Put* put;
    std::string db_key;
    std::string value;  // encoded
    int64_t expiry_ns;
    Tally tally;
  };

  PreparedTransaction(const Transaction& transaction, TallyFn tally);

  // Adds records or chunks. What only changes records, such as marking one as deleted, must still
  // work on a disk that is nearly full: it is the way out.
  bool Grows() const;

  const Transaction* transaction;
  std::vector<PreparedPut> puts;
  std::map<ChunkId, const std::string*> offered;
  size_t size_bytes = 0;
};

// What is in the database. Nobody else changes it while a group is made.
class StoredEntries {
 public:
  virtual ~StoredEntries() = default;
  // NOT_FOUND if there is none.
  virtual absl::StatusOr<Record> Get(const Key& key) const = 0;
  // A count of 0 if there is none.
  virtual absl::StatusOr<ChunkReference> GetReference(const std::string& db_key,
                                                      const ChunkId& id) const = 0;
};

class CommitGroup {
 public:
  // `stored` must outlive this. `size_bytes` of records and chunks are expected: a batch that grows
  // copies everything it has each time.
  CommitGroup(const StoredEntries& stored, TallyFn tally, size_t size_bytes)
      : stored_(stored), tally_(tally), batch_(size_bytes + size_bytes / 64 + 4096) {}

  // Errors of StateStore::Commit(); nothing of the transaction is in the batch then.
  absl::Status Add(const PreparedTransaction& prepared);

  rocksdb::WriteBatch& batch() { return batch_; }
  // What the batch adds to the store's figures.
  const StoreStats& change() const { return change_; }
  const TotalsTable& totals_change() const { return totals_change_; }

 private:
  // What a commit needs to know of a stored record.
  struct RecordHead {
    int64_t version = 0;  // 0: absent
    int64_t expiry_ns = 0;
    std::vector<ChunkId> chunks;
    Tally tally;
  };
  struct ReferenceChange {
    ChunkId id;
    std::string db_key;
    ChunkReference before, after;
  };

  absl::StatusOr<RecordHead> ReadHead(const Key& key, const std::string& db_key) const;
  // Also checks the version; subtracts the record's chunks from `references`.
  absl::StatusOr<RecordHead> ReplacedHead(const Key& key, const std::string& db_key,
                                          int64_t expected_version,
                                          std::map<ChunkId, int64_t>& references) const;
  absl::StatusOr<ReferenceChange> ChangeReference(const PreparedTransaction& prepared,
                                                  const std::string& realm, const ChunkId& id,
                                                  int64_t amount) const;
  void WritePut(const PreparedTransaction::PreparedPut& prepared, const RecordHead& old);
  void WriteDelete(const Key& key, const RecordHead& old);
  void WriteReference(const PreparedTransaction& prepared, const std::string& realm,
                      const ReferenceChange& change);

  const StoredEntries& stored_;
  const TallyFn tally_;
  rocksdb::WriteBatch batch_;
  // What the batch changes, by database key. A count of 0 is a deleted chunk.
  std::map<std::string, RecordHead> records_;
  std::map<std::string, ChunkReference> references_;
  StoreStats change_;
  TotalsTable totals_change_;
};

}  // namespace mneme::memstore
