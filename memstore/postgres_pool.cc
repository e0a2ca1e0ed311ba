#include "memstore/postgres_pool.h"

#include "absl/strings/str_cat.h"
#include "memstore/postgres_durability.h"
#include "memstore/postgres_statements.h"

namespace mneme::memstore {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kGrace{1000};
constexpr size_t kSlowestBytesPerMs = 8 << 10;

// A transaction whose client went away in the middle must not keep its locks for long.
constexpr PgStatement kSetTimeouts = {"", R"sql(
SELECT set_config('statement_timeout', $1::text, false),
  set_config('idle_in_transaction_session_timeout', $1::text, false),
  set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
  set_config('tcp_keepalives_count', '3', false),
  set_config('default_transaction_isolation', 'read committed', false),
  set_config('client_encoding', 'UTF8', false))sql"};

constexpr PgStatement kWhoAmI = {"", R"sql(
SELECT pid::bigint, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid())sql"};
// Process numbers are used again, and other servers have their own.
constexpr PgStatement kEnd = {"", R"sql(
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = $1::bigint AND backend_start::text = $2::text)sql"};

constexpr PgStatement kCancel = {"", R"sql(
SELECT pg_cancel_backend(pid) FROM pg_stat_activity
WHERE pid = $1::bigint AND backend_start::text = $2::text)sql"};

}  // namespace

absl::StatusOr<PgPool::Lease> PgPool::Take(PgDeadline deadline) {
  absl::StatusOr<Member> member = Idle(deadline);
  if (!member.ok()) return member.status();
  if (!member->connection) {
    member = Connect();
    if (!member.ok()) {
      MutexLock lock(&mutex_);
      --open_;
      returned_.NotifyOne();
      return member.status();
    }
  }
  EndLost(*member->connection);
  return Lease(this, *std::move(member));
}

absl::StatusOr<PgPool::Member> PgPool::Idle(PgDeadline deadline) {
  std::vector<Member> stale;  // closed without the lock
  MutexLock lock(&mutex_);
  while (idle_.empty() && open_ == options_.max_connections) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) {
      return absl::UnavailableError(
          absl::StrCat("all ", options_.max_connections, " connections to PostgreSQL are in use"));
    }
    returned_.WaitFor(&mutex_, left);
  }
  while (!idle_.empty()) {
    Member member = std::move(idle_.back());
    idle_.pop_back();
    if (!member.connection->Stale()) return member;
    --open_;
    stale.push_back(std::move(member));
  }
  ++open_;
  return Member{};
}

absl::StatusOr<PgPool::Member> PgPool::Connect() {
  absl::StatusOr<std::unique_ptr<PgConnection>> connection = PgConnection::Connect(target_);
  if (!connection.ok()) return connection.status();
  Member member{.connection = *std::move(connection), .durability = {}, .writer = {}, .token = {}};
  member.connection->Queue(
      kSetTimeouts,
      PgParams().Bytes(absl::StrCat(absl::ToInt64Milliseconds(options_.statement_timeout))));
  member.connection->Queue(kWhoAmI);
  for (const PgStatement* statement : kPrepared) member.connection->QueuePrepare(*statement);
  const PgOutcome ready = member.connection->Run(BatchDeadline());
  if (!ready.ok()) return ready.status;
  if (ready.rows[1].size() == 1) {
    member.pid = ready.rows[1].Int8(0, 0);
    member.started = ready.rows[1].Bytes(0, 1);
  }
  CheckDurabilityOf(member).IgnoreError();  // reads need none
  if (member.connection->lost()) return member.durability;
  return member;
}

absl::Status PgPool::CheckDurabilityOf(Member& member) {
  member.durability =
      CheckDurability(*member.connection, options_.synchronous_standbys, BatchDeadline());
  return member.durability;
}

void PgPool::Return(Member member) {
  const bool lost = member.connection->lost();
  const bool usable = !lost && !member.connection->InTransaction();
  std::vector<std::unique_ptr<PgConnection>> dead;  // closed without the lock
  MutexLock lock(&mutex_);
  if (usable) {
    idle_.push_back(std::move(member));
  } else {
    --open_;
    dead.push_back(std::move(member.connection));
    if (lost && member.pid != 0) lost_.push_back(std::move(member));
  }
  // What took one connection has most likely taken the others with it; their next users need not
  // find out one by one.
  if (lost) {
    open_ -= static_cast<int>(idle_.size());
    for (Member& idle : idle_) dead.push_back(std::move(idle.connection));
    idle_.clear();
    returned_.NotifyAll();
  }
  returned_.NotifyOne();
}

void PgPool::EndLost(PgConnection& connection) {
  std::vector<Member> lost;
  {
    MutexLock lock(&mutex_);
    lost.swap(lost_);
  }
  if (lost.empty()) return;
  for (const Member& member : lost) {
    connection.Queue(kEnd, PgParams().Int8(member.pid).Bytes(member.started));
  }
  connection.Run(BatchDeadline());  // if it fails, the server's own timeouts do it later
}

PgOutcome PgPool::RunCommit(Member& member, size_t size_bytes) const {
  return member.connection->Run(BatchDeadline(size_bytes), [&] {
    const absl::StatusOr<std::unique_ptr<PgConnection>> other = PgConnection::Connect(target_);
    if (other.ok()) {
      (*other)->Queue(kCancel, PgParams().Int8(member.pid).Bytes(member.started));
      (*other)->Run(BatchDeadline());
    }
    return BatchDeadline();
  });
}

PgDeadline PgPool::BatchDeadline(size_t size_bytes) const {
  return Clock::now() + absl::ToChronoMilliseconds(options_.statement_timeout) + kGrace +
         std::chrono::milliseconds(size_bytes / kSlowestBytesPerMs);
}

}  // namespace mneme::memstore
