// One transaction of the store as one transaction of PostgreSQL, in two round trips: lock and look,
// then write and COMMIT.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "memstore/postgres_pool.h"
#include "memstore/state_store.h"
#include "memstore/totals.h"

namespace mneme::memstore {

// An id as it is stored.
inline std::string_view PgBytes(const ChunkId& id) {
  return {reinterpret_cast<const char*>(id.data()), id.size()};
}
// A record's chunks as they are stored; nullopt if that is no list of ids.
std::optional<std::vector<ChunkId>> PgChunkIds(std::string_view bytes);

// Thread-compatible. Refers to the transaction, which is valid and writes something.
class PgCommit {
 public:
  // `tally`: that of KeepTotals(), or null.
  PgCommit(const Transaction& transaction, TallyFn tally);

  enum class Outcome {
    kFinal,    // the status says what happened, as StateStore::Commit() returns it
    kRepeat,   // nothing happened, for a reason that may be gone the next time
    kUnknown,  // COMMIT was sent, its answer never came
  };
  struct Result {
    Outcome outcome;
    absl::Status status;
  };
  // Leaves `token`, which names this try and no other, with the lease's writer.
  Result Try(const PgPool& pool, PgPool::Lease& lease, const std::string& token) const;

 private:
  struct Head {
    int64_t version = 0;
    std::vector<ChunkId> chunks;
    Tally tally;
  };
  // By how much the references of each chunk change.
  using Amounts = std::map<ChunkId, int64_t>;

  absl::Status Look(const PgRows& locked, Amounts& amounts, TotalsTable& totals) const;
  // Chunks that must be there already are appended to `referred`. Returns the bytes queued.
  size_t QueueChunks(PgConnection& connection, const Amounts& amounts,
                     std::vector<std::string_view>& referred) const;
  size_t QueueRecords(PgConnection& connection) const;
  void QueueTotals(PgPool::Lease& lease, const TotalsTable& totals) const;
  Result WhyRefused(const PgPool& pool, PgPool::Lease& lease, const PgOutcome& outcome,
                    const std::vector<std::string_view>& referred) const;

  const Transaction& transaction_;
  const std::string& realm_;
  std::vector<Tally> tallies_;           // of the puts
  std::vector<std::string_view> names_;  // of all records
  std::map<ChunkId, const std::string*> offered_;
};

}  // namespace mneme::memstore
