// Connections to one PostgreSQL server, each used by one thread at a time.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memstore/mutex.h"
#include "memstore/postgres_connection.h"
#include "memstore/postgres_target.h"
#include "memstore/state_store.h"

namespace mneme::memstore {

// Thread-safe.
class PgPool {
 public:
  PgPool(PgTarget target, const PostgresOptions& options)
      : target_(std::move(target)), options_(options) {}

  // A connection that is ready for statements of postgres_statements.h.
  struct Member {
    std::unique_ptr<PgConnection> connection;
    // Whether what it acknowledges is kept, as far as is known (postgres_durability.h).
    absl::Status durability;
    // By which the server knows it.
    int64_t pid = 0;
    std::string started;
    // Its row in mneme_writers: the token of its last commit, "" if there is no row yet.
    std::string writer, token;
  };

  // Gives the member back, or closes it if it is lost or in the middle of a transaction.
  class Lease {
   public:
    Lease(PgPool* pool, Member member) : pool_(pool), member_(std::move(member)) {}
    Lease(Lease&& other) = default;
    Lease& operator=(Lease&&) = delete;
    ~Lease() {
      if (member_.connection) pool_->Return(std::move(member_));
    }

    PgConnection* operator->() const { return member_.connection.get(); }
    PgConnection& operator*() const { return *member_.connection; }
    Member& member() { return member_; }

   private:
    PgPool* const pool_;
    Member member_;
  };

  // Waits for a free one, at most until `deadline`. UNAVAILABLE; INTERNAL if the server refuses the
  // statements.
  absl::StatusOr<Lease> Take(PgDeadline deadline);

  // For one batch of statements that begins now and sends so much: what the server gives a
  // statement, and a little more, so that the server is the one who ends it.
  PgDeadline BatchDeadline(size_t size_bytes = 0) const;

  // For batches that commit. The server ends no statement that waits for a standby; it is told to
  // stop waiting, over a connection of its own, and then says so (PgOutcome::warned).
  PgOutcome RunCommit(Member& member, size_t size_bytes = 0) const;

  // Looks again whether commits of this member are kept; settings may have been mended.
  absl::Status CheckDurabilityOf(Member& member);

 private:
  // One that is idle; or none, with the right to make one.
  absl::StatusOr<Member> Idle(PgDeadline deadline);
  absl::StatusOr<Member> Connect();
  void Return(Member member);
  // Ends what connections of ours that were lost may still do on the server, with the locks that
  // they hold there: it may believe in them for hours.
  void EndLost(PgConnection& connection);

  const PgTarget target_;
  const PostgresOptions options_;
  Mutex mutex_;
  CondVar returned_;
  std::vector<Member> idle_ ABSL_GUARDED_BY(mutex_);  // the last one used is the next one
  int open_ ABSL_GUARDED_BY(mutex_) = 0;              // idle, leased or being made
  // Without their connections.
  std::vector<Member> lost_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::memstore
