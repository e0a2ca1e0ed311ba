#include "memstore/postgres_state_store.h"

#include <sys/random.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "memstore/mutex.h"
#include "memstore/postgres_commit.h"
#include "memstore/postgres_durability.h"
#include "memstore/postgres_pool.h"
#include "memstore/postgres_schema.h"
#include "memstore/postgres_statements.h"
#include "memstore/postgres_target.h"
#include "memstore/validate.h"

namespace mneme::memstore {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxTries = 20;
constexpr std::chrono::milliseconds kSettlePause{50};
// Of connections that are gone; one that is not, but did nothing for so long, begins a new row.
constexpr PgStatement kForgetOldWriters = {
    "", "DELETE FROM mneme_writers WHERE used_at < now() - interval '1 day'"};

// What a transaction whose answer was lost can be asked for by.
struct PgTicket {
  std::string writer, token;
};

absl::StatusOr<std::string> RandomBytes() {
  std::string token(16, '\0');
  if (getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    return absl::InternalError("no random bytes");
  }
  return token;
}

// Of kGet, kGetMany and kList.
absl::StatusOr<Record> ToRecord(const Key& key, const PgRows& rows, int row) {
  std::optional<std::vector<ChunkId>> chunks = PgChunkIds(rows.Bytes(row, 3));
  if (!chunks) {
    return absl::DataLossError(
        absl::StrCat("record ", KeyText(key), ": its list of chunks is damaged"));
  }
  Record record{rows.Int8(row, 0), std::string(rows.Bytes(row, 2)), *std::move(chunks)};
  if (!rows.IsNull(row, 1)) record.expire_time = ExpiryFromNanos(rows.Int8(row, 1));
  return record;
}

class PostgresStateStore : public StateStore {
 public:
  PostgresStateStore(PgTarget target, const PostgresOptions& options)
      : timeout_(absl::ToChronoMilliseconds(options.statement_timeout)),
        pool_(std::move(target), options) {}

  absl::Status CheckDurability() {
    absl::StatusOr<PgPool::Lease> lease = Use(Deadline());
    return lease.ok() ? lease->member().durability : lease.status();
  }

  bool shared() const override { return true; }

  absl::StatusOr<Record> Get(const Key& key) const override {
    if (absl::Status status = ValidateKey(key); !status.ok()) return status;
    const absl::StatusOr<PgRows> rows = Read(kGet, PgParams().Bytes(key.realm).Bytes(key.name));
    if (!rows.ok()) return rows.status();
    if (rows->size() == 0) return RecordNotFound(key);
    return ToRecord(key, *rows, 0);
  }

  absl::StatusOr<std::map<std::string, Record>> GetMany(
      const std::string& realm, const std::vector<std::string>& names) const override {
    if (absl::Status status = ValidateRealm(realm); !status.ok()) return status;
    std::map<std::string, Record> found;
    if (names.empty()) return found;
    const absl::StatusOr<PgRows> rows =
        Read(kGetMany, PgParams().Bytes(realm).TextArray({names.begin(), names.end()}));
    if (!rows.ok()) return rows.status();
    for (int row = 0; row < rows->size(); ++row) {
      std::string name(rows->Bytes(row, 4));
      absl::StatusOr<Record> record = ToRecord({realm, name}, *rows, row);
      if (!record.ok()) return record.status();
      found.emplace(std::move(name), *std::move(record));
    }
    return found;
  }

  absl::StatusOr<std::string> GetChunk(std::string_view realm, const ChunkId& id) const override {
    if (absl::Status status = ValidateRealm(realm); !status.ok()) return status;
    const absl::StatusOr<PgRows> rows = Read(kGetChunk, PgParams().Bytes(realm).Bytes(PgBytes(id)));
    if (!rows.ok()) return rows.status();
    if (rows->size() == 0) return ChunkNotFound(id);
    const std::string_view bytes = rows->Bytes(0, 0);
    if (HashChunk(bytes) != id) return ChunkDamaged(realm, id);
    return std::string(bytes);
  }

  absl::Status Commit(const Transaction& transaction) override;

  absl::StatusOr<std::vector<ListedRecord>> List(const ListOptions& options) const override {
    if (absl::Status status = ValidateListOptions(options); !status.ok()) return status;
    // Names are printable ASCII: \x01 comes before whatever may follow a name, \x7f after all.
    const std::string start =
        options.start_after < options.prefix ? options.prefix : options.start_after + '\x01';
    const absl::StatusOr<PgRows> rows = Read(kList, PgParams()
                                                        .Bytes(options.realm)
                                                        .Bytes(start)
                                                        .Bytes(options.prefix + '\x7f')
                                                        .Int8(options.limit));
    if (!rows.ok()) return rows.status();
    std::vector<ListedRecord> listed;
    for (int row = 0; row < rows->size(); ++row) {
      std::string name(rows->Bytes(row, 4));
      absl::StatusOr<Record> record = ToRecord({options.realm, name}, *rows, row);
      if (!record.ok()) return record.status();
      listed.push_back({std::move(name), *std::move(record)});
    }
    return listed;
  }

  absl::StatusOr<std::vector<Key>> Expired(absl::Time now, int limit) const override {
    const absl::StatusOr<PgRows> rows =
        Read(kExpired, PgParams().Int8(ExpiryToNanos(now)).Int8(std::max(limit, 0)));
    if (!rows.ok()) return rows.status();
    std::vector<Key> keys;
    for (int row = 0; row < rows->size(); ++row) {
      keys.push_back({std::string(rows->Bytes(row, 0)), std::string(rows->Bytes(row, 1))});
    }
    return keys;
  }

  absl::Status KeepTotals(TallyFn tally) override {
    tally_ = tally;
    absl::StatusOr<PgPool::Lease> lease = Use(Deadline());
    if (!lease.ok()) return lease.status();
    return PreparePostgresTotals(**lease, tally, [this] { return pool_.BatchDeadline(); });
  }

  absl::StatusOr<std::vector<Total>> Totals(const std::string& realm) const override {
    const absl::StatusOr<PgRows> rows = Read(kTotals, PgParams().Bytes(realm));
    if (!rows.ok()) return rows.status();
    std::vector<Total> totals;
    for (int row = 0; row < rows->size(); ++row) {
      totals.push_back({std::string(rows->Bytes(row, 0)), static_cast<int>(rows->Int8(row, 1)),
                        rows->Int8(row, 2), rows->Int8(row, 3)});
    }
    return totals;
  }

  absl::StatusOr<std::vector<std::string>> Realms() const override {
    const absl::StatusOr<PgRows> rows = Read(kRealms, {});
    if (!rows.ok()) return rows.status();
    std::vector<std::string> realms;
    for (int row = 0; row < rows->size(); ++row) realms.emplace_back(rows->Bytes(row, 0));
    return realms;
  }

  absl::StatusOr<StoreStats> Stats() const override {
    const absl::StatusOr<PgRows> rows = Read(kStats, {});
    if (!rows.ok()) return rows.status();
    return StoreStats{rows->Int8(0, 0), rows->Int8(0, 1), rows->Int8(0, 2)};
  }

  absl::Status Probe() override;

 private:
  PgDeadline Deadline() const { return Clock::now() + timeout_; }

  // A connection, after every commit whose outcome is unknown has been settled.
  absl::StatusOr<PgPool::Lease> Use(PgDeadline deadline) const;
  // With a writer; UNAVAILABLE with kNotDurablePayload if `sync` would not hold.
  absl::StatusOr<PgPool::Lease> UseForWriting(bool sync, PgDeadline deadline) const;
  absl::StatusOr<PgRows> Read(const PgStatement& statement, const PgParams& params) const;
  // Whether the transaction with this ticket committed, durably if `sync`. Asks until the server
  // answers or statement_timeout has passed; then the ticket is left for Use(). UNAVAILABLE.
  absl::StatusOr<bool> Settle(const PgTicket& ticket, bool sync);

  const std::chrono::milliseconds timeout_;
  TallyFn tally_ = nullptr;  // set before the first commit
  mutable PgPool pool_;
  mutable Mutex mutex_;
  mutable std::vector<PgTicket> unsettled_ ABSL_GUARDED_BY(mutex_);
};

absl::StatusOr<PgPool::Lease> PostgresStateStore::Use(PgDeadline deadline) const {
  absl::StatusOr<PgPool::Lease> lease = pool_.Take(deadline);
  if (!lease.ok()) return lease;
  std::vector<PgTicket> tickets;
  {
    MutexLock lock(&mutex_);
    tickets = unsettled_;
  }
  if (tickets.empty()) return lease;
  // Nobody waits for the answers any more; but from now on they cannot change.
  for (const PgTicket& ticket : tickets) {
    const absl::StatusOr<std::string> token = RandomBytes();
    if (!token.ok()) return token.status();
    (*lease)->Queue(kSettle, PgParams().Bytes(ticket.writer).Bytes(*token));
  }
  if (PgOutcome settled = pool_.RunCommit(lease->member()); !settled.ok()) {
    return settled.status;
  }
  MutexLock lock(&mutex_);
  std::erase_if(unsettled_, [&](const PgTicket& unsettled) {
    return std::any_of(tickets.begin(), tickets.end(),
                       [&](const PgTicket& t) { return t.token == unsettled.token; });
  });
  return lease;
}

absl::StatusOr<PgRows> PostgresStateStore::Read(const PgStatement& statement,
                                                const PgParams& params) const {
  const PgDeadline deadline = Deadline();
  for (int tries = 1;; ++tries) {
    absl::StatusOr<PgPool::Lease> lease = Use(deadline);
    if (!lease.ok()) return lease.status();
    (*lease)->Queue(statement, params);
    PgOutcome outcome = (*lease)->Run(pool_.BatchDeadline());
    if (outcome.ok()) return std::move(outcome.rows[0]);
    if (!(outcome.lost || outcome.conflict()) || tries == kMaxTries || Clock::now() >= deadline) {
      return outcome.status;
    }
  }
}

absl::Status PostgresStateStore::Commit(const Transaction& transaction) {
  if (absl::Status status = ValidateTransaction(transaction); !status.ok()) return status;
  if (transaction.puts.empty() && transaction.deletes.empty()) return absl::OkStatus();
  const PgCommit commit(transaction, tally_);
  const PgDeadline deadline = Deadline();
  for (int tries = 1;; ++tries) {
    const absl::StatusOr<std::string> token = RandomBytes();
    if (!token.ok()) return token.status();
    PgTicket ticket{.writer = {}, .token = *token};
    PgCommit::Result result;
    {
      absl::StatusOr<PgPool::Lease> lease = UseForWriting(transaction.sync, deadline);
      if (!lease.ok()) return lease.status();
      ticket.writer = lease->member().writer;
      result = commit.Try(pool_, *lease, *token);
    }
    if (result.outcome == PgCommit::Outcome::kUnknown) {
      const absl::StatusOr<bool> committed = Settle(ticket, transaction.sync);
      if (!committed.ok()) return committed.status();
      if (*committed) return absl::OkStatus();
      result.outcome = PgCommit::Outcome::kRepeat;
    }
    if (result.outcome == PgCommit::Outcome::kFinal || tries == kMaxTries ||
        Clock::now() >= deadline) {
      return result.status;
    }
    // Two that were in each other's way should not meet again at once.
    std::this_thread::sleep_for(std::chrono::microseconds((*token)[0] & 0x7f) * 8 * (tries - 1));
  }
}

absl::StatusOr<PgPool::Lease> PostgresStateStore::UseForWriting(bool sync,
                                                                PgDeadline deadline) const {
  absl::StatusOr<PgPool::Lease> lease = Use(deadline);
  if (!lease.ok()) return lease;
  PgPool::Member& member = lease->member();
  if (sync && !member.durability.ok()) {
    if (absl::Status status = pool_.CheckDurabilityOf(member); !status.ok()) return status;
  }
  if (member.writer.empty()) {
    absl::StatusOr<std::string> writer = RandomBytes();
    if (!writer.ok()) return writer.status();
    member.writer = *std::move(writer);
  }
  return lease;
}

absl::StatusOr<bool> PostgresStateStore::Settle(const PgTicket& ticket, bool sync) {
  const PgDeadline deadline = Deadline();
  const absl::StatusOr<std::string> token = RandomBytes();
  if (!token.ok()) return token.status();
  while (true) {
    absl::Status status;
    {
      absl::StatusOr<PgPool::Lease> lease = pool_.Take(deadline);
      status = lease.status();
      if (lease.ok()) {
        (*lease)->Queue(kSettle, PgParams().Bytes(ticket.writer).Bytes(*token));
        const PgOutcome outcome = pool_.RunCommit(lease->member());
        if (outcome.ok()) {
          const bool committed = outcome.rows[0].Bytes(0, 0) == ticket.token;
          if (committed && sync && outcome.warned) return CommittedAlone();
          const absl::Status& durability = lease->member().durability;
          if (committed && sync && !durability.ok()) return durability;
          return committed;
        }
        status = outcome.status;
      }
    }
    if (Clock::now() >= deadline) {
      MutexLock lock(&mutex_);
      unsettled_.push_back(ticket);
      return absl::UnavailableError(absl::StrCat(
          "connection lost during COMMIT, and whether it happened cannot be found out yet: ",
          std::string(status.message())));
    }
    std::this_thread::sleep_for(kSettlePause);
  }
}

// A token is written as any commit writes one, and read back.
absl::Status PostgresStateStore::Probe() {
  const absl::StatusOr<std::string> token = RandomBytes();
  if (!token.ok()) return token.status();
  absl::StatusOr<PgPool::Lease> lease = UseForWriting(/*sync=*/true, Deadline());
  if (!lease.ok()) return lease.status();
  PgPool::Member& member = lease->member();
  (*lease)->Queue(kSettle, PgParams().Bytes(member.writer).Bytes(*token));
  const PgOutcome written = pool_.RunCommit(member);
  if (!written.ok()) return written.status;
  member.token = *token;
  if (written.warned) return CommittedAlone();
  (*lease)->Queue(kFindToken, PgParams().Bytes(member.writer));
  const PgOutcome found = (*lease)->Run(pool_.BatchDeadline());
  if (!found.ok()) return found.status;
  if (found.rows[0].size() != 1 || found.rows[0].Bytes(0, 0) != *token) {
    return absl::DataLossError("store probe does not read back what it wrote");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StateStore>> Open(const PostgresOptions& options) {
  absl::StatusOr<PgTarget> target = PgTarget::Parse(options.uri, options.statement_timeout);
  if (!target.ok()) return target.status();
  {
    const absl::StatusOr<std::unique_ptr<PgConnection>> connection = PgConnection::Connect(*target);
    if (!connection.ok()) return connection.status();
    // Whoever makes the tables at the same moment is waited for.
    const PgDeadline deadline =
        Clock::now() + absl::ToChronoMilliseconds(options.statement_timeout);
    if (absl::Status status = PreparePostgresSchema(**connection, deadline); !status.ok()) {
      return status;
    }
    (*connection)->Queue(kForgetOldWriters);
    if (PgOutcome outcome = (*connection)->Run(deadline); !outcome.ok()) return outcome.status;
  }
  auto store = std::make_unique<PostgresStateStore>(*std::move(target), options);
  if (absl::Status status = store->CheckDurability(); !status.ok()) return status;
  // Of the tables the youngest: a role may lack rights to it.
  if (const auto totals = store->Totals(""); !totals.ok()) return totals.status();
  return std::unique_ptr<StateStore>(std::move(store));
}

}  // namespace

absl::StatusOr<std::unique_ptr<StateStore>> OpenPostgresStore(const PostgresOptions& options) {
  if (options.max_connections < 1 || options.synchronous_standbys < 0 ||
      options.statement_timeout < absl::Milliseconds(1)) {
    return absl::InvalidArgumentError(
        "a PostgreSQL store needs at least one connection, a timeout of at least 1 ms, and no less "
        "than 0 standbys");
  }
  absl::StatusOr<std::unique_ptr<StateStore>> store = Open(options);
  // What the database lacks at the start (rights, features) is not a fault of ours.
  if (absl::IsInternal(store.status())) {
    return absl::FailedPreconditionError(store.status().message());
  }
  return store;
}

}  // namespace mneme::memstore
