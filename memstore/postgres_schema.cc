#include "memstore/postgres_schema.h"

#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memstore/postgres_statements.h"

namespace mneme::memstore {
namespace {

// The letters "mneme"; any number would do that no other program locks.
constexpr PgStatement kLockSchema = {"", "SELECT pg_advisory_xact_lock(470121574757)"};
// Reading pg_class, and not to_regclass alone, looks at the catalogue as it is after the lock.
constexpr PgStatement kFindSchema = {
    "", "SELECT count(*) > 0 FROM pg_class WHERE oid = to_regclass('mneme_schema')"};
constexpr PgStatement kReadVersion = {"", "SELECT version FROM mneme_schema"};
constexpr PgStatement kWriteVersion = {
    "",
    "INSERT INTO mneme_schema (version) VALUES ($1::bigint) "
    "ON CONFLICT (one) DO UPDATE SET version = excluded.version"};

// What makes each version from the one before it. Only ever added to.
constexpr const char* kToVersion1[] = {
    R"sql(CREATE TABLE mneme_schema (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  version bigint NOT NULL))sql",
    R"sql(CREATE TABLE mneme_records (
  realm text COLLATE "C" NOT NULL,
  name text COLLATE "C" NOT NULL,
  version bigint NOT NULL CHECK (version >= 1),
  expiry_ns bigint,
  value bytea NOT NULL,
  chunks bytea NOT NULL,
  PRIMARY KEY (realm, name)) WITH (fillfactor = 80))sql",
    R"sql(CREATE INDEX mneme_records_by_expiry ON mneme_records (expiry_ns, realm, name)
  WHERE expiry_ns IS NOT NULL)sql",
    R"sql(CREATE TABLE mneme_chunks (
  realm text COLLATE "C" NOT NULL,
  id bytea NOT NULL,
  refs bigint NOT NULL CHECK (refs >= 1),
  bytes bytea NOT NULL,
  PRIMARY KEY (realm, id)) WITH (fillfactor = 80))sql",
    R"sql(CREATE TABLE mneme_writers (
  id bytea PRIMARY KEY,
  token bytea NOT NULL,
  settled bytea,
  used_at timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 50))sql",
    "ALTER TABLE mneme_records ALTER value SET STORAGE EXTERNAL, ALTER chunks SET STORAGE EXTERNAL",
    "ALTER TABLE mneme_chunks ALTER bytes SET STORAGE EXTERNAL",
};

constexpr const char* kToVersion2[] = {
    "ALTER TABLE mneme_schema ADD totals_kept boolean NOT NULL DEFAULT false",
    R"sql(ALTER TABLE mneme_records
  ADD kind bigint NOT NULL DEFAULT 0,
  ADD amount bigint NOT NULL DEFAULT 0)sql",
    R"sql(CREATE TABLE mneme_totals (
  realm text COLLATE "C" NOT NULL,
  kind bigint NOT NULL,
  shard bigint NOT NULL,
  records bigint NOT NULL,
  amount bigint NOT NULL,
  PRIMARY KEY (realm, kind, shard)) WITH (fillfactor = 50))sql",
};

constexpr PgStatement kTotalsKept = {"", "SELECT totals_kept FROM mneme_schema"};
constexpr PgStatement kStopCommits = {"", "LOCK TABLE mneme_records IN EXCLUSIVE MODE"};
// After the record $1, $2.
constexpr PgStatement kNextRecords = {"", R"sql(
SELECT realm, name, value, kind, amount FROM mneme_records
WHERE (realm, name) > ($1::text, $2::text) ORDER BY realm, name LIMIT 200)sql"};
constexpr PgStatement kWriteTallies = {"", R"sql(
UPDATE mneme_records AS r SET kind = t.kind, amount = t.amount
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS t(realm, name, kind, amount)
WHERE r.realm = t.realm AND r.name = t.name)sql"};
constexpr PgStatement kClearTotals = {"", "DELETE FROM mneme_totals"};
constexpr PgStatement kWriteTotals = {"", R"sql(
INSERT INTO mneme_totals (realm, kind, shard, records, amount)
SELECT realm, kind, 0, count(*), sum(amount)::bigint FROM mneme_records
WHERE kind > 0 GROUP BY realm, kind)sql"};
constexpr PgStatement kKeepTotals = {"", "UPDATE mneme_schema SET totals_kept = true"};

absl::StatusOr<bool> TotalsKept(PgConnection& connection, PgDeadline deadline) {
  connection.Queue(kTotalsKept);
  const PgOutcome kept = connection.Run(deadline);
  if (!kept.ok()) return kept.status;
  return kept.rows[0].size() == 1 && kept.rows[0].Bool(0, 0);
}

absl::Status WriteTallies(PgConnection& connection, TallyFn tally,
                          const std::function<PgDeadline()>& batch_deadline) {
  Key last;
  while (true) {
    connection.Queue(kNextRecords, PgParams().Bytes(last.realm).Bytes(last.name));
    const PgOutcome found = connection.Run(batch_deadline());
    if (!found.ok()) return found.status;
    const PgRows& rows = found.rows[0];
    if (rows.size() == 0) return absl::OkStatus();
    std::vector<std::string_view> realms, names;
    std::vector<std::optional<int64_t>> kinds, amounts;
    for (int row = 0; row < rows.size(); ++row) {
      last = {std::string(rows.Bytes(row, 0)), std::string(rows.Bytes(row, 1))};
      const Tally counted = tally(last, rows.Bytes(row, 2));
      if (counted == Tally{static_cast<int>(rows.Int8(row, 3)), rows.Int8(row, 4)}) continue;
      realms.push_back(rows.Bytes(row, 0));
      names.push_back(rows.Bytes(row, 1));
      kinds.emplace_back(counted.kind);
      amounts.emplace_back(counted.amount);
    }
    if (names.empty()) continue;
    connection.Queue(
        kWriteTallies,
        PgParams().TextArray(realms).TextArray(names).Int8Array(kinds).Int8Array(amounts));
    if (PgOutcome written = connection.Run(batch_deadline()); !written.ok()) return written.status;
  }
}

// 0 if there is none.
absl::StatusOr<int64_t> FindVersion(PgConnection& connection, PgDeadline deadline) {
  connection.Queue(kFindSchema);
  PgOutcome found = connection.Run(deadline);
  if (!found.ok()) return found.status;
  if (!found.rows[0].Bool(0, 0)) return 0;
  connection.Queue(kReadVersion);
  found = connection.Run(deadline);
  if (!found.ok()) return found.status;
  if (found.rows[0].size() != 1 || found.rows[0].Int8(0, 0) < 1) {
    return absl::DataLossError("mneme_schema does not say the version of the tables");
  }
  return found.rows[0].Int8(0, 0);
}

absl::Status CheckVersion(int64_t version) {
  if (version <= kPostgresSchema) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the database has tables of version ", version, ", this version of Mneme knows ",
                   kPostgresSchema, "; a newer one has upgraded them"));
}

absl::Status Upgrade(PgConnection& connection, PgDeadline deadline) {
  connection.Queue(kBegin);
  connection.Queue(kLockSchema);
  if (PgOutcome locked = connection.Run(deadline); !locked.ok()) return locked.status;
  // Whoever had the lock before may have done it.
  const absl::StatusOr<int64_t> version = FindVersion(connection, deadline);
  if (!version.ok()) return version.status();
  if (absl::Status status = CheckVersion(*version); !status.ok()) return status;
  if (*version < 1) {
    for (const char* sql : kToVersion1) connection.Queue({"", sql});
  }
  if (*version < 2) {
    for (const char* sql : kToVersion2) connection.Queue({"", sql});
  }
  connection.Queue(kWriteVersion, PgParams().Int8(kPostgresSchema));
  connection.Queue(kCommit);
  return connection.Run(deadline).status;
}

}  // namespace

absl::Status PreparePostgresSchema(PgConnection& connection, PgDeadline deadline) {
  const absl::StatusOr<int64_t> version = FindVersion(connection, deadline);
  if (!version.ok()) return version.status();
  if (absl::Status status = CheckVersion(*version); !status.ok()) return status;
  return *version == kPostgresSchema ? absl::OkStatus() : Upgrade(connection, deadline);
}

absl::Status PreparePostgresTotals(PgConnection& connection, TallyFn tally,
                                   const std::function<PgDeadline()>& batch_deadline) {
  absl::StatusOr<bool> kept = TotalsKept(connection, batch_deadline());
  if (!kept.ok() || *kept) return kept.status();
  connection.Queue(kBegin);
  connection.Queue(kLockSchema);
  connection.Queue(kStopCommits);
  if (PgOutcome locked = connection.Run(batch_deadline()); !locked.ok()) return locked.status;
  kept = TotalsKept(connection, batch_deadline());  // by whoever had the lock before
  if (!kept.ok()) return kept.status();
  if (!*kept) {
    if (absl::Status status = WriteTallies(connection, tally, batch_deadline); !status.ok()) {
      return status;
    }
    connection.Queue(kClearTotals);
    connection.Queue(kWriteTotals);
    connection.Queue(kKeepTotals);
  }
  connection.Queue(kCommit);
  return connection.Run(batch_deadline()).status;
}

}  // namespace mneme::memstore
