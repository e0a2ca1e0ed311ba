// The shared store: StateStore on PostgreSQL 15 or what speaks its protocol, for several servers on
// one database. The tables: postgres_schema.h; the statements: postgres_statements.h; how a
// transaction becomes one: postgres_commit.h. Callers outside memstore/ and its tests use
// OpenPostgresStore() of state_store.h.
//
// Isolation. A Transaction is one SQL transaction at READ COMMITTED with explicit locks, which are
// held to its end. First the records that it replaces or deletes, FOR UPDATE in the order of their
// names: their versions are compared then, so that of two writers the second one sees what the
// first one wrote. A record that must be new is inserted, and its primary key lets one of two win.
// Then the chunks whose references change, FOR UPDATE in the order of their ids. A chunk whose
// count comes to zero is deleted in that very transaction; who refers to it meanwhile waits, and
// finds it gone, or back again and counts it: one statement does both. So what is read is locked
// before it is relied on, and a stricter isolation level, which other databases may insist on,
// changes nothing but the number of conflicts. Conflicts (40001, 40P01) are repeated. The condition
// of a lease (its epoch) has its place beside the versions: one more row that is locked with the
// records, and checked there or by a statement like kReferToChunks before COMMIT.
//
// Totals are changed last of all, in a shard that the connection has nearly for itself: one row of
// each tenant would make all its commits wait for each other's flush of the log.
//
// Commit sends BEGIN and the lock of the records, looks, and sends all the rest up to COMMIT at
// once: two round trips.
//
// Lost connections. Before COMMIT is sent nothing has happened: the transaction is repeated on
// another connection, at once. After that nobody knows. So each connection is a writer with a
// row of its own, in which each transaction replaces the token of the last one by its own, a random
// number. Who has to know takes that row: the transaction's token is in it, then it has committed;
// or it is not, then it cannot commit any more, wherever between here and the server it may still
// be, because the token that it wants to replace is gone. Asking is durable itself, and therefore
// all that it has found. While the server cannot be asked Commit() waits at most statement_timeout
// and then says UNAVAILABLE; the store asks before it uses the server again, so that what is read
// after a failed commit is final.
//
// Durability. With sync = true a commit waits for the log on disk, and for the standbys that
// synchronous_standby_names asks for; whether they are as many as required is looked up on every
// connection. A server that is told to stop waiting for a standby, after statement_timeout, has
// committed, and warns; that is kNotDurablePayload, not success.
#pragma once

#include "memstore/state_store.h"
