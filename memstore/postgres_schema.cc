#include "memstore/postgres_schema.h"

#include <iterator>

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

}  // namespace mneme::memstore
