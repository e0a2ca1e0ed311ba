// What the store asks PostgreSQL, in one place. postgres_state_store.h says how it fits together.
//
// Beyond standard SQL: ON CONFLICT, RETURNING, UPDATE in WITH, LIMIT, arrays with unnest() and =
// ANY, FOR UPDATE at READ COMMITTED. PostgreSQL's own, outside of transactions: current_setting,
// set_config, to_regclass, pg_stat_activity with pg_terminate_backend and pg_cancel_backend (which
// may fail), advisory locks, and the storage parameters of postgres_schema.cc.
#pragma once

#include "memstore/postgres_connection.h"

namespace mneme::memstore {

inline constexpr PgStatement kBegin = {"", "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"};
inline constexpr PgStatement kCommit = {"", "COMMIT"};
inline constexpr PgStatement kRollback = {"", "ROLLBACK"};
inline constexpr PgStatement kNoSync = {"", "SET LOCAL synchronous_commit TO off"};

// Reading. $1 is the realm everywhere.

inline constexpr PgStatement kGet = {"mneme_get", R"sql(
SELECT version, expiry_ns, value, chunks FROM mneme_records
WHERE realm = $1::text AND name = $2::text)sql"};

// Those of the names $2 that exist.
inline constexpr PgStatement kGetMany = {"mneme_get_many", R"sql(
SELECT version, expiry_ns, value, chunks, name FROM mneme_records
WHERE realm = $1::text AND name = ANY ($2::text[]))sql"};

inline constexpr PgStatement kGetChunk = {"mneme_get_chunk", R"sql(
SELECT bytes FROM mneme_chunks WHERE realm = $1::text AND id = $2::bytea)sql"};

// Names from $2 on and below $3.
inline constexpr PgStatement kList = {"mneme_list", R"sql(
SELECT version, expiry_ns, value, chunks, name FROM mneme_records
WHERE realm = $1::text AND name >= $2::text AND name < $3::text ORDER BY name LIMIT $4::bigint)sql"};

inline constexpr PgStatement kExpired = {"mneme_expired", R"sql(
SELECT realm, name FROM mneme_records
WHERE expiry_ns <= $1::bigint ORDER BY expiry_ns, realm, name LIMIT $2::bigint)sql"};

// Hops from realm to realm by the primary key.
inline constexpr PgStatement kRealms = {"mneme_realms", R"sql(
WITH RECURSIVE hop(realm) AS (
  (SELECT realm FROM mneme_records ORDER BY realm LIMIT 1)
  UNION ALL
  SELECT (SELECT r.realm FROM mneme_records r WHERE r.realm > hop.realm ORDER BY r.realm LIMIT 1)
  FROM hop WHERE hop.realm IS NOT NULL)
SELECT realm FROM hop WHERE realm IS NOT NULL ORDER BY realm)sql"};

// Of the realm $1, or of all if it is empty.
inline constexpr PgStatement kTotals = {"mneme_totals", R"sql(
SELECT realm, kind, sum(records)::bigint, sum(amount)::bigint FROM mneme_totals
WHERE $1::text = '' OR realm = $1::text GROUP BY realm, kind
HAVING sum(records) <> 0 OR sum(amount) <> 0 ORDER BY realm, kind)sql"};

inline constexpr PgStatement kStats = {"mneme_stats", R"sql(
SELECT (SELECT count(*) FROM mneme_records), count(*), coalesce(sum(octet_length(bytes)), 0)::bigint
FROM mneme_chunks)sql"};

// Committing, in this order.

// Of the records $2 those that exist, locked.
inline constexpr PgStatement kLockRecords = {"mneme_lock_records", R"sql(
SELECT name, version, chunks, kind, amount FROM mneme_records
WHERE realm = $1::text AND name = ANY ($2::text[]) ORDER BY name FOR UPDATE)sql"};

// Of the chunks $2 those that exist, locked.
inline constexpr PgStatement kLockChunks = {"mneme_lock_chunks", R"sql(
SELECT count(*) FROM (SELECT 1 FROM mneme_chunks
  WHERE realm = $1::text AND id = ANY ($2::bytea[]) ORDER BY id FOR UPDATE) AS locked)sql"};

// $3, negative, is added to the references of $2, of chunks that are locked. Those that nobody
// refers to then go first, or the second statement would make more of them look like that.
inline constexpr PgStatement kDropChunks = {"mneme_drop_chunks", R"sql(
DELETE FROM mneme_chunks AS c USING unnest($2::bytea[], $3::bigint[]) AS d(id, change)
WHERE c.realm = $1::text AND c.id = d.id AND c.refs + d.change = 0)sql"};
inline constexpr PgStatement kReleaseChunks = {"mneme_release_chunks", R"sql(
UPDATE mneme_chunks AS c SET refs = c.refs + d.change
FROM unnest($2::bytea[], $3::bigint[]) AS d(id, change)
WHERE c.realm = $1::text AND c.id = d.id)sql"};

// $3 is added to the references of the $4 chunks $2, which the transaction does not bring along.
// They must all be there, and it is this statement that must find them: one that is gone now may be
// back when another statement looks, and would then be there without having been counted. Division
// by zero stops the transaction otherwise, as it does below: the only way to make COMMIT, which is
// on its way already, depend on anything. A condition on a lease (its epoch) would be one more of
// these.
inline constexpr PgStatement kReferToChunks = {"mneme_refer_to_chunks", R"sql(
WITH counted AS (UPDATE mneme_chunks AS c SET refs = c.refs + d.change
  FROM unnest($2::bytea[], $3::bigint[]) AS d(id, change)
  WHERE c.realm = $1::text AND c.id = d.id RETURNING 1)
SELECT 1 / CASE WHEN count(*) = $4::bigint THEN 1 ELSE 0 END FROM counted)sql"};

// Ids $2 ascending, with $3 references more and the bytes $4, which are used if the chunk is new.
inline constexpr PgStatement kAddChunks = {"mneme_add_chunks", R"sql(
INSERT INTO mneme_chunks AS c (realm, id, refs, bytes)
SELECT $1::text, n.id, n.refs, n.bytes
FROM unnest($2::bytea[], $3::bigint[], $4::bytea[]) AS n(id, refs, bytes)
ON CONFLICT (realm, id) DO UPDATE SET refs = c.refs + excluded.refs)sql"};

// Names $2 with their expiry $3, value $4, chunks $5 and tally $6, $7.
inline constexpr PgStatement kInsertRecords = {"mneme_insert_records", R"sql(
INSERT INTO mneme_records (realm, name, version, expiry_ns, value, chunks, kind, amount)
SELECT $1::text, p.name, 1, p.expiry_ns, p.value, p.chunks, p.kind, p.amount
FROM unnest($2::text[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bigint[], $7::bigint[])
  AS p(name, expiry_ns, value, chunks, kind, amount))sql"};
inline constexpr PgStatement kUpdateRecords = {"mneme_update_records", R"sql(
UPDATE mneme_records AS r
SET version = r.version + 1, expiry_ns = p.expiry_ns, value = p.value, chunks = p.chunks,
  kind = p.kind, amount = p.amount
FROM unnest($2::text[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bigint[], $7::bigint[])
  AS p(name, expiry_ns, value, chunks, kind, amount)
WHERE r.realm = $1::text AND r.name = p.name)sql"};
inline constexpr PgStatement kDeleteRecords = {"mneme_delete_records", R"sql(
DELETE FROM mneme_records WHERE realm = $1::text AND name = ANY ($2::text[]))sql"};

// The totals' shard $2 changes, of the kinds $3 ascending, by the records $4 and the amounts $5.
// Few others wait for these rows, and whoever holds them waits for nobody but the disk.
inline constexpr PgStatement kAddTotals = {"mneme_add_totals", R"sql(
INSERT INTO mneme_totals AS t (realm, kind, shard, records, amount)
SELECT $1::text, d.kind, $2::bigint, d.records, d.amount
FROM unnest($3::bigint[], $4::bigint[], $5::bigint[]) AS d(kind, records, amount)
ON CONFLICT (realm, kind, shard) DO UPDATE
SET records = t.records + excluded.records, amount = t.amount + excluded.amount)sql"};

// The transaction's token $2 by the writer $1: its first, or the one after $3.
inline constexpr PgStatement kFirstToken = {"mneme_first_token", R"sql(
INSERT INTO mneme_writers (id, token) VALUES ($1::bytea, $2::bytea))sql"};
inline constexpr PgStatement kNextToken = {"mneme_next_token", R"sql(
WITH written AS (UPDATE mneme_writers SET token = $2::bytea, used_at = now()
  WHERE id = $1::bytea AND token = $3::bytea RETURNING 1)
SELECT 1 / count(*) FROM written)sql"};

// The last token of the writer $1 that committed; NULL if none did. No transaction of that writer
// that began before can commit any more: $2 is in the way of its token. Waits for one that is still
// at it. Asked again with the same $2, it says the same. It always writes, so that being durable
// itself it makes durable what it found.
inline constexpr PgStatement kSettle = {"mneme_settle", R"sql(
INSERT INTO mneme_writers AS w (id, token) VALUES ($1::bytea, $2::bytea)
ON CONFLICT (id) DO UPDATE SET
  settled = CASE WHEN w.token = excluded.token THEN w.settled ELSE w.token END,
  token = excluded.token, used_at = now()
RETURNING settled)sql"};
inline constexpr PgStatement kFindToken = {"mneme_find_token", R"sql(
SELECT token FROM mneme_writers WHERE id = $1::bytea)sql"};

// After a refusal: which of the chunks $2 are there.
inline constexpr PgStatement kFindChunks = {"mneme_find_chunks", R"sql(
SELECT id FROM mneme_chunks WHERE realm = $1::text AND id = ANY ($2::bytea[]))sql"};

inline constexpr const PgStatement* kPrepared[] = {
    &kGet,           &kGetMany,       &kGetChunk,   &kList,          &kExpired,
    &kRealms,        &kTotals,        &kStats,      &kLockRecords,   &kLockChunks,
    &kDropChunks,    &kReleaseChunks, &kAddChunks,  &kInsertRecords, &kUpdateRecords,
    &kDeleteRecords, &kReferToChunks, &kAddTotals,  &kFirstToken,    &kNextToken,
    &kSettle,        &kFindToken,     &kFindChunks,
};

}  // namespace mneme::memstore
