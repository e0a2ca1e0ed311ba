// One connection to PostgreSQL: statements go in batches of one round trip each (libpq's pipeline
// mode) with parameters and results in binary format, and every wait ends at a deadline.
//
// One thread at a time uses a connection (postgres_pool.h hands them out). What the server reports
// becomes an absl::Status here and nowhere else.
#pragma once

#include <libpq-fe.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memstore/postgres_target.h"

namespace mneme::memstore {

using PgDeadline = std::chrono::steady_clock::time_point;

// Without a name it is parsed each time: for what runs once, and for BEGIN and COMMIT, which need
// no plan.
struct PgStatement {
  const char* name;
  const char* sql;
};

// Values of a statement's parameters, $1 first, in PostgreSQL's binary format. Owns them.
class PgParams {
 public:
  PgParams& Int8(int64_t value);
  PgParams& Bytes(std::string_view value);  // bytea or text
  PgParams& TextArray(const std::vector<std::string_view>& values);
  PgParams& ByteaArray(const std::vector<std::string_view>& values);
  PgParams& Int8Array(const std::vector<std::optional<int64_t>>& values);  // nullopt: NULL

  const std::vector<std::string>& values() const { return values_; }
  size_t size_bytes() const;

 private:
  std::vector<std::string> values_;
};

// The rows of one statement. Views live as long as this.
class PgRows {
 public:
  explicit PgRows(PGresult* result) : result_(result, PQclear) {}

  int size() const { return PQntuples(result_.get()); }
  bool IsNull(int row, int column) const { return PQgetisnull(result_.get(), row, column) != 0; }
  std::string_view Bytes(int row, int column) const;
  // Of a bigint that is not NULL; 0 for anything else, which our statements do not return.
  int64_t Int8(int row, int column) const;
  bool Bool(int row, int column) const { return Bytes(row, column) == std::string_view("\1", 1); }
  // "COMMIT", "UPDATE 3"
  std::string_view tag() const { return PQcmdStatus(result_.get()); }

 private:
  std::unique_ptr<PGresult, void (*)(PGresult*)> result_;
};

struct PgOutcome {
  // Of the first statement that failed, those after it did nothing; or of the connection.
  // RESOURCE_EXHAUSTED for a full disk, DATA_LOSS for damage, INTERNAL for missing tables, rights
  // or features, else UNAVAILABLE.
  absl::Status status;
  // Of a statement that failed; "" if unknown.
  std::string sqlstate, statement;
  // The connection is of no use any more. What was sent may have happened or may happen yet.
  bool lost = false;
  // The server warned of something: of a COMMIT, that it gave up waiting for a standby.
  bool warned = false;
  std::vector<PgRows> rows;  // of each statement, if status is OK

  bool ok() const { return status.ok(); }
  // It did not happen, and may succeed when it is repeated: a conflict with other transactions.
  bool conflict() const { return sqlstate == "40001" || sqlstate == "40P01"; }
};

class PgConnection {
 public:
  // Blocks, at most connect_timeout for each host of the target. UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<PgConnection>> Connect(const PgTarget& target);

  // For the next Run().
  void Queue(const PgStatement& statement, PgParams params = {});
  // So that statements with this name can be queued.
  void QueuePrepare(const PgStatement& statement);
  // Sends what was queued and waits for all results. Outside of BEGIN and COMMIT the batch is one
  // transaction.
  // `on_timeout`, if given, is called once when `deadline` has passed before all results are there,
  // and says how much longer to wait.
  PgOutcome Run(PgDeadline deadline, std::function<PgDeadline()> on_timeout = nullptr);

  bool lost() const { return lost_; }
  bool InTransaction() const { return PQtransactionStatus(connection_.get()) != PQTRANS_IDLE; }
  // While nothing is asked: the server said something, which can only be that it goes away.
  bool Stale() const;

 private:
  explicit PgConnection(PGconn* connection, std::string place)
      : connection_(connection, PQfinish), place_(std::move(place)) {}

  struct Queued {
    PgStatement statement;
    PgParams params;
    bool prepare = false;
  };

  bool Send(const Queued& queued);
  // False: the deadline has passed, or the connection broke.
  bool Wait(PgDeadline deadline, bool for_result);
  PGresult* NextResult(PgDeadline& deadline, std::function<PgDeadline()>& on_timeout);
  void Lose(PgOutcome& outcome, std::string_view why);
  static void OnNotice(void* self, const PGresult* notice);

  std::unique_ptr<PGconn, void (*)(PGconn*)> connection_;
  const std::string place_;  // for messages
  std::vector<Queued> queued_;
  bool lost_ = false;
  bool warned_ = false;
};

}  // namespace mneme::memstore
