#include "memstore/postgres_commit.h"

#include <algorithm>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "memstore/postgres_durability.h"
#include "memstore/postgres_statements.h"
#include "memstore/validate.h"

namespace mneme::memstore {
namespace {

// Of one statement that adds chunks: the server copies an array's elements through memory of this
// order (work_mem), and to a temporary file if they are more. All go in one round trip anyhow.
constexpr size_t kBytesPerStatement = 2 << 20;
// More than a database takes commits of one tenant at a time.
constexpr int64_t kTotalShards = 64;

std::string Concatenate(const std::vector<ChunkId>& ids) {
  std::string out;
  out.reserve(ids.size() * sizeof(ChunkId));
  for (const ChunkId& id : ids) out += PgBytes(id);
  return out;
}

void RollBack(const PgPool& pool, PgConnection& connection) {
  if (connection.lost() || !connection.InTransaction()) return;
  connection.Queue(kRollback);
  connection.Run(pool.BatchDeadline());  // if it fails, the pool throws the connection away
}

}  // namespace

std::optional<std::vector<ChunkId>> PgChunkIds(std::string_view bytes) {
  if (bytes.size() % sizeof(ChunkId) != 0) return std::nullopt;
  std::vector<ChunkId> ids(bytes.size() / sizeof(ChunkId));
  for (size_t i = 0; i < ids.size(); ++i) {
    std::copy_n(bytes.begin() + i * sizeof(ChunkId), sizeof(ChunkId), ids[i].begin());
  }
  return ids;
}

PgCommit::PgCommit(const Transaction& transaction, TallyFn tally)
    : transaction_(transaction),
      realm_(transaction.puts.empty() ? transaction.deletes[0].key.realm
                                      : transaction.puts[0].key.realm) {
  for (const Put& put : transaction.puts) {
    names_.push_back(put.key.name);
    tallies_.push_back(TallyOf(tally, put.key, put.value));
  }
  for (const Delete& del : transaction.deletes) names_.push_back(del.key.name);
  for (const NewChunk& chunk : transaction.new_chunks) offered_.emplace(chunk.id, &chunk.bytes);
}

PgCommit::Result PgCommit::Try(const PgPool& pool, PgPool::Lease& lease,
                               const std::string& token) const {
  lease->Queue(kBegin);
  if (!transaction_.sync) lease->Queue(kNoSync);
  lease->Queue(kLockRecords, PgParams().Bytes(realm_).TextArray(names_));
  const PgOutcome locked = lease->Run(pool.BatchDeadline());
  if (!locked.ok()) {
    RollBack(pool, *lease);
    return {locked.lost || locked.conflict() ? Outcome::kRepeat : Outcome::kFinal, locked.status};
  }
  Amounts amounts;
  TotalsTable totals;
  if (absl::Status refused = Look(locked.rows.back(), amounts, totals); !refused.ok()) {
    RollBack(pool, *lease);
    return {Outcome::kFinal, refused};
  }

  std::vector<std::string_view> referred;
  size_t size_bytes = QueueChunks(*lease, amounts, referred);
  size_bytes += QueueRecords(*lease);
  QueueTotals(lease, totals);
  PgPool::Member& member = lease.member();
  if (member.token.empty()) {
    lease->Queue(kFirstToken, PgParams().Bytes(member.writer).Bytes(token));
  } else {
    lease->Queue(kNextToken, PgParams().Bytes(member.writer).Bytes(token).Bytes(member.token));
  }
  lease->Queue(kCommit);
  const PgOutcome written = pool.RunCommit(member, size_bytes);
  // CockroachDB's 40003: it does not know either.
  if (written.lost || written.sqlstate == "40003") return {Outcome::kUnknown, written.status};
  if (!written.ok()) return WhyRefused(pool, lease, written, referred);
  if (written.rows.back().tag() != "COMMIT") {
    return {Outcome::kRepeat, absl::UnavailableError("PostgreSQL rolled a transaction back")};
  }
  member.token = token;
  if (written.warned && transaction_.sync) {
    return {Outcome::kFinal, CommittedAlone()};
  }
  return {Outcome::kFinal, absl::OkStatus()};
}

absl::Status PgCommit::Look(const PgRows& locked, Amounts& amounts, TotalsTable& totals) const {
  std::map<std::string_view, Head> heads;
  for (int row = 0; row < locked.size(); ++row) {
    const std::string_view name = locked.Bytes(row, 0);
    std::optional<std::vector<ChunkId>> chunks = PgChunkIds(locked.Bytes(row, 2));
    if (!chunks) {
      return absl::DataLossError(absl::StrCat("record ", realm_, "/", std::string(name),
                                              ": its list of chunks is damaged"));
    }
    heads[name] = {locked.Int8(row, 1),
                   *std::move(chunks),
                   {static_cast<int>(locked.Int8(row, 3)), locked.Int8(row, 4)}};
  }
  const auto replace = [&](const Key& key, int64_t expected_version) {
    const Head& head = heads[key.name];
    if (head.version != expected_version) {
      return VersionMismatch(key, head.version, expected_version);
    }
    for (const ChunkId& id : head.chunks) --amounts[id];
    totals.Remove(realm_, head.tally);
    return absl::OkStatus();
  };
  for (const Tally& tally : tallies_) totals.Add(realm_, tally);
  for (const Put& put : transaction_.puts) {
    if (absl::Status status = replace(put.key, put.expected_version); !status.ok()) return status;
    for (const ChunkId& id : put.chunks) ++amounts[id];
  }
  for (const Delete& del : transaction_.deletes) {
    if (absl::Status status = replace(del.key, del.expected_version); !status.ok()) return status;
  }
  return absl::OkStatus();
}

size_t PgCommit::QueueChunks(PgConnection& connection, const Amounts& amounts,
                             std::vector<std::string_view>& referred) const {
  // Locked in the order of their ids, so that transactions seldom wait for each other in a circle;
  // if they do (a chunk that is new to both), PostgreSQL ends one, which is repeated.
  std::vector<std::string_view> all, released, added, bytes;
  std::vector<std::optional<int64_t>> released_amounts, referred_amounts, added_amounts;
  for (const auto& [id, amount] : amounts) {
    if (amount == 0) continue;  // an old record of this transaction refers to it, so it exists
    all.push_back(PgBytes(id));
    if (amount < 0) {
      released.push_back(PgBytes(id));
      released_amounts.emplace_back(amount);
    } else if (!offered_.contains(id)) {
      referred.push_back(PgBytes(id));
      referred_amounts.emplace_back(amount);
    }
  }
  if (!all.empty()) {
    connection.Queue(kLockChunks, PgParams().Bytes(realm_).ByteaArray(all));
  }
  if (!released.empty()) {
    const PgParams params =
        PgParams().Bytes(realm_).ByteaArray(released).Int8Array(released_amounts);
    connection.Queue(kDropChunks, params);
    connection.Queue(kReleaseChunks, params);
  }
  if (!referred.empty()) {
    connection.Queue(kReferToChunks, PgParams()
                                         .Bytes(realm_)
                                         .ByteaArray(referred)
                                         .Int8Array(referred_amounts)
                                         .Int8(static_cast<int64_t>(referred.size())));
  }
  size_t size_bytes = 0, statement_bytes = 0;
  const auto flush = [&] {
    if (added.empty()) return;
    connection.Queue(
        kAddChunks,
        PgParams().Bytes(realm_).ByteaArray(added).Int8Array(added_amounts).ByteaArray(bytes));
    added.clear();
    added_amounts.clear();
    bytes.clear();
    statement_bytes = 0;
  };
  for (const auto& [id, amount] : amounts) {
    const auto offered = offered_.find(id);
    if (amount <= 0 || offered == offered_.end()) continue;
    const std::string& content = *offered->second;
    if (statement_bytes + content.size() > kBytesPerStatement) flush();
    added.push_back(PgBytes(id));
    added_amounts.push_back(amount);
    bytes.push_back(content);
    size_bytes += content.size();
    statement_bytes += content.size();
  }
  flush();
  return size_bytes;
}

size_t PgCommit::QueueRecords(PgConnection& connection) const {
  size_t size_bytes = 0;
  for (const bool insert : {false, true}) {
    std::vector<std::string_view> names, values, chunks;
    std::vector<std::string> concatenated;
    std::vector<std::optional<int64_t>> expiries, kinds, amounts;
    for (size_t i = 0; i < transaction_.puts.size(); ++i) {
      const Put& put = transaction_.puts[i];
      if ((put.expected_version == 0) != insert) continue;
      names.push_back(put.key.name);
      values.push_back(put.value);
      concatenated.push_back(Concatenate(put.chunks));
      const int64_t expiry_ns = ExpiryToNanos(put.expire_time);
      expiries.push_back(expiry_ns == INT64_MAX ? std::nullopt : std::optional(expiry_ns));
      kinds.emplace_back(tallies_[i].kind);
      amounts.emplace_back(tallies_[i].amount);
      size_bytes += put.value.size() + concatenated.back().size();
    }
    if (names.empty()) continue;
    chunks.assign(concatenated.begin(), concatenated.end());
    connection.Queue(insert ? kInsertRecords : kUpdateRecords, PgParams()
                                                                   .Bytes(realm_)
                                                                   .TextArray(names)
                                                                   .Int8Array(expiries)
                                                                   .ByteaArray(values)
                                                                   .ByteaArray(chunks)
                                                                   .Int8Array(kinds)
                                                                   .Int8Array(amounts));
  }
  if (!transaction_.deletes.empty()) {
    std::vector<std::string_view> names;
    for (const Delete& del : transaction_.deletes) names.push_back(del.key.name);
    connection.Queue(kDeleteRecords, PgParams().Bytes(realm_).TextArray(names));
  }
  return size_bytes;
}

void PgCommit::QueueTotals(PgPool::Lease& lease, const TotalsTable& totals) const {
  std::vector<std::optional<int64_t>> kinds, records, amounts;
  for (const auto& [key, sum] : totals.sums()) {
    kinds.emplace_back(key.second);
    records.emplace_back(sum.records);
    amounts.emplace_back(sum.amount);
  }
  if (kinds.empty()) return;
  // Processes are numbered one after the other: those that commit at a time have shards of their
  // own.
  const int64_t shard = lease.member().pid % kTotalShards;
  lease->Queue(
      kAddTotals,
      PgParams().Bytes(realm_).Int8(shard).Int8Array(kinds).Int8Array(records).Int8Array(amounts));
}

// Of a connection that still works: nothing has happened.
PgCommit::Result PgCommit::WhyRefused(const PgPool& pool, PgPool::Lease& lease,
                                      const PgOutcome& outcome,
                                      const std::vector<std::string_view>& referred) const {
  RollBack(pool, *lease);
  const Result repeat{Outcome::kRepeat, outcome.status};
  if (outcome.conflict()) return repeat;
  // Somebody else made the record since it was found absent; the next look finds its version.
  if (outcome.sqlstate == "23505" && outcome.statement == kInsertRecords.name) return repeat;
  // The writer's row was cleaned away after a day without commits: it begins anew.
  if (outcome.sqlstate == "22012" && outcome.statement == kNextToken.name) {
    lease.member().writer.clear();
    lease.member().token.clear();
    return repeat;
  }
  if (outcome.sqlstate != "22012" || outcome.statement != kReferToChunks.name) {
    return {Outcome::kFinal, outcome.status};
  }
  lease->Queue(kFindChunks, PgParams().Bytes(realm_).ByteaArray(referred));
  const PgOutcome found = lease->Run(pool.BatchDeadline());
  if (!found.ok()) return {Outcome::kRepeat, found.status};
  std::set<std::string_view> there;
  for (int row = 0; row < found.rows[0].size(); ++row) there.insert(found.rows[0].Bytes(row, 0));
  for (const std::string_view id : referred) {
    if (!there.contains(id)) return {Outcome::kFinal, ChunkMissing(PgChunkIds(id)->front())};
  }
  return repeat;  // they are back
}

}  // namespace mneme::memstore
