// The tables of the store, and how a database comes to have them.
//
//   mneme_schema   one row: the version of the rest
//   mneme_records  realm, name -> version, expiry_ns (NULL: never), value, chunks (ids of 32 bytes,
//                  one after the other)
//   mneme_chunks   realm, id -> refs (of all records, duplicates counted), bytes
//   mneme_writers  id of a connection -> token of the last transaction that it committed, by which
//                  an outcome can be asked for (postgres_state_store.h)
//
// They are made in the first schema of the search path. Names order bytewise (COLLATE "C"). Bytes
// are STORAGE EXTERNAL: states are noise, compressing them is work for nothing. Pages keep
// room for the next version of their rows, and what changes often is in no index, so that counts
// and tokens are changed in place, also when the disk has no page left.
#pragma once

#include "absl/status/status.h"
#include "memstore/postgres_connection.h"

namespace mneme::memstore {

// The newest that this build knows.
inline constexpr int64_t kPostgresSchema = 1;

// Makes or upgrades the tables, in one transaction; one server does so at a time, by an advisory
// lock. A database that is up to date is only looked at. FAILED_PRECONDITION: a newer version made
// them. INTERNAL: the role may not.
absl::Status PreparePostgresSchema(PgConnection& connection, PgDeadline deadline);

}  // namespace mneme::memstore
