// The tables of the store, and how a database comes to have them.
//
//   mneme_schema   one row: the version of the rest; whether totals are kept
//   mneme_records  realm, name -> version, expiry_ns (NULL: never), value, chunks (ids of 32 bytes,
//                  one after the other), kind and amount (its Tally)
//   mneme_chunks   realm, id -> refs (of all records, duplicates counted), bytes
//   mneme_totals   realm, kind, shard -> records, amount: a total is the sum of its shards, which
//   are
//                  so many that commits at the same time seldom wait for each other's
//   mneme_writers  id of a connection -> token of the last transaction that it committed, by which
//                  an outcome can be asked for (postgres_state_store.h)
//
// They are made in the first schema of the search path. Names order bytewise (COLLATE "C"). Bytes
// are STORAGE EXTERNAL: states are noise, compressing them is work for nothing. Pages keep
// room for the next version of their rows, and what changes often is in no index, so that counts
// and tokens are changed in place, also when the disk has no page left.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "memstore/postgres_connection.h"
#include "memstore/state_store.h"

namespace mneme::memstore {

// The newest that this build knows.
inline constexpr int64_t kPostgresSchema = 2;

// Makes or upgrades the tables, in one transaction; one server does so at a time, by an advisory
// lock. A database that is up to date is only looked at. FAILED_PRECONDITION: a newer version made
// them. INTERNAL: the role may not.
absl::Status PreparePostgresSchema(PgConnection& connection, PgDeadline deadline);

// Fills in what KeepTotals() needs, if no one has: the tallies of all records, and the totals.
// Commits wait meanwhile. `batch_deadline`: of what begins now.
absl::Status PreparePostgresTotals(PgConnection& connection, TallyFn tally,
                                   const std::function<PgDeadline()>& batch_deadline);

}  // namespace mneme::memstore
