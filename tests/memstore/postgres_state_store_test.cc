// What only the shared store promises: several clients of one database, and a server that restarts,
// dies, hangs, is cut off in mid-commit, or is too old or too new.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memstore/postgres_connection.h"
#include "memstore/postgres_schema.h"
#include "memstore/postgres_statements.h"
#include "memstore/postgres_target.h"
#include "memstore/state_store.h"
#include "tests/memstore/store_testing.h"
#include "tests/support/postgres_proxy.h"
#include "tests/support/postgres_server.h"
#include "tests/support/wait_for.h"

namespace mneme::memstore {
namespace {

using mneme::test::PostgresProxy;
using mneme::test::PostgresServer;
using ::testing::HasSubstr;
using ::testing::Not;

class PostgresStateStoreTest : public ::testing::Test {
 protected:
  PostgresStateStoreTest()
      : server_(PostgresServer::Shared()), uri_(server_.NewDatabase()), proxy_(server_.socket()) {}

  std::unique_ptr<StateStore> Open(PostgresOptions options = {}) {
    if (options.uri.empty()) options.uri = uri_;
    auto store = OpenPostgresStore(options);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  std::string Database() const {
    const size_t slash = uri_.find("///") + 3;
    return uri_.substr(slash, uri_.find('?') - slash);
  }
  std::unique_ptr<StateStore> OpenByProxy(absl::Duration timeout = absl::Seconds(30)) {
    return Open({.uri = proxy_.Uri(Database()), .statement_timeout = timeout});
  }
  std::string Sql(const std::string& sql) {
    const auto result = server_.Query(sql, Database());
    EXPECT_TRUE(result.ok()) << result.status();
    return result.value_or("");
  }

  // Without it the rest would wait for ever.
  void MustRun() {
    const absl::Status status = server_.Run();
    if (!status.ok()) {
      std::cerr << status << std::endl;
      abort();
    }
  }

  PostgresServer& server_;
  const std::string uri_;
  PostgresProxy proxy_;
};

TEST_F(PostgresStateStoreTest, OfTwoServersExactlyOneWins) {
  const auto a = Open(), b = Open();
  ASSERT_TRUE(a && b);
  for (int64_t round = 0; round < 40; ++round) {
    const NewChunk chunk = MakeChunk(absl::StrCat("round ", round));
    absl::Status of_a, of_b;
    std::thread other([&] { of_a = a->Commit(PutOf({"t", "s"}, round, "a", {chunk})); });
    of_b = b->Commit(PutOf({"t", "s"}, round, "b", {chunk}));
    other.join();
    ASSERT_NE(of_a.ok(), of_b.ok()) << round << ": " << of_a << ", " << of_b;
    const absl::Status& loser = of_a.ok() ? of_b : of_a;
    ASSERT_EQ(loser.code(), absl::StatusCode::kAborted) << loser;
    EXPECT_EQ(std::string(*loser.GetPayload(kVersionPayload)), absl::StrCat(round + 1));
    EXPECT_EQ(b->Get({"t", "s"})->value, of_a.ok() ? "a" : "b");
    EXPECT_EQ(a->Stats()->chunks, 1);
  }
}

// Transactions that take the same chunks in opposite roles get in each other's way; whoever has to
// give in is repeated, and the counts stay right.
TEST_F(PostgresStateStoreTest, ConflictsAreRepeated) {
  const auto store = Open();
  ASSERT_TRUE(store);
  std::vector<NewChunk> chunks;
  for (int i = 0; i < 12; ++i) chunks.push_back(MakeChunk(absl::StrCat("chunk ", i)));
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t round = 0; round < 40; ++round) {
        std::vector<NewChunk> mine;
        for (int i = 0; i < 6; ++i) mine.push_back(chunks[(t * 5 + round * 7 + i * 11) % 12]);
        Transaction put = PutOf({"t", absl::StrCat("s", t)}, round, "", mine);
        put.sync = false;
        const absl::Status status = store->Commit(put);
        if (!status.ok() && failed++ == 0) ADD_FAILURE() << status;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  for (int t = 0; t < 6; ++t) {
    EXPECT_TRUE(store->Commit(DeleteOf({"t", absl::StrCat("s", t)}, 40)).ok());
  }
  EXPECT_EQ(store->Stats()->chunks, 0);
}

TEST_F(PostgresStateStoreTest, ManyMayMakeTheTablesAtOnce) {
  std::atomic<int> opened{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] { opened += Open() != nullptr; });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(opened, 8);
  EXPECT_EQ(Sql("SELECT version FROM mneme_schema"), absl::StrCat(kPostgresSchema));
}

TEST_F(PostgresStateStoreTest, TablesOfANewerVersionAreLeftAlone) {
  ASSERT_TRUE(Open());
  Sql("UPDATE mneme_schema SET version = version + 1");
  const auto store = OpenPostgresStore({.uri = uri_});
  EXPECT_EQ(store.status().code(), absl::StatusCode::kFailedPrecondition) << store.status();
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("newer"));
}

TEST_F(PostgresStateStoreTest, TablesOfVersionOneAreUpgradedAndCounted) {
  {
    const auto store = Open();
    ASSERT_TRUE(store);
    ASSERT_TRUE(store->Commit(PutOf({"a", "s"}, 0, "1..", {MakeChunk("c")})).ok());
    ASSERT_TRUE(store->Commit(PutOf({"b", "s"}, 0, "2")).ok());
    ASSERT_TRUE(store->Commit(PutOf({"b", "none"}, 0, "")).ok());
    for (int i = 0; i < 450; ++i) {  // more than one batch
      Transaction put = PutOf({"b", absl::StrCat("t", i)}, 0, "2.");
      put.sync = false;
      ASSERT_TRUE(store->Commit(put).ok());
    }
  }
  Sql("ALTER TABLE mneme_records DROP kind, DROP amount");
  Sql("ALTER TABLE mneme_schema DROP totals_kept");
  Sql("DROP TABLE mneme_totals");
  Sql("UPDATE mneme_schema SET version = 1");
  // Two servers start at once.
  const auto store = Open(), other = Open();
  ASSERT_TRUE(store && other);
  std::thread counts_too([&] { EXPECT_TRUE(other->KeepTotals(TallyOfLength).ok()); });
  EXPECT_TRUE(store->KeepTotals(TallyOfLength).ok());
  counts_too.join();
  EXPECT_EQ(*store->Totals(""), (std::vector<Total>{{"a", 1, 1, 3}, {"b", 2, 451, 901}}));
  ASSERT_TRUE(other->Commit(PutOf({"b", "s"}, 1, "1")).ok());
  ASSERT_TRUE(store->Commit(DeleteOf({"a", "s"}, 1)).ok());
  EXPECT_EQ(*store->Totals(""), (std::vector<Total>{{"b", 1, 1, 1}, {"b", 2, 450, 900}}));
  // A later start reads no records.
  Sql("UPDATE mneme_records SET kind = 3");
  const auto later = Open();
  ASSERT_TRUE(later);
  ASSERT_TRUE(later->KeepTotals(TallyOfLength).ok());
  EXPECT_EQ(*later->Totals(""), *store->Totals(""));
  // Unless it is told to.
  Sql("UPDATE mneme_totals SET records = 7");
  Sql("UPDATE mneme_schema SET totals_kept = false");
  const auto repairs = Open();
  ASSERT_TRUE(repairs);
  ASSERT_TRUE(repairs->KeepTotals(TallyOfLength).ok());
  EXPECT_EQ(*repairs->Totals(""), (std::vector<Total>{{"b", 1, 1, 1}, {"b", 2, 450, 900}}));
}

// A role that may use the tables and no more is enough for all but the first start.
TEST_F(PostgresStateStoreTest, ARoleNeedsNoMoreThanItsGrants) {
  Sql("CREATE ROLE server LOGIN");
  const std::string uri = absl::StrCat(uri_.substr(0, uri_.find("&user=")), "&user=server");
  const auto refused = OpenPostgresStore({.uri = uri});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("permission denied"));
  ASSERT_TRUE(Open());
  Sql("GRANT SELECT ON mneme_schema TO server");
  Sql("GRANT SELECT, INSERT, UPDATE, DELETE ON mneme_records, mneme_chunks, mneme_writers TO "
      "server");
  const auto ungranted = OpenPostgresStore({.uri = uri});  // as of an earlier version's tables
  EXPECT_EQ(ungranted.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(ungranted.status().message()), HasSubstr("mneme_totals"));
  Sql("GRANT SELECT, INSERT, UPDATE, DELETE ON mneme_totals TO server");
  const auto store = Open({.uri = uri});
  ASSERT_TRUE(store);
  EXPECT_TRUE(store->Probe().ok());
  EXPECT_TRUE(store->Commit(PutOf({"t", "s"}, 0, "", {MakeChunk("c")})).ok());
  EXPECT_TRUE(store->Commit(DeleteOf({"t", "s"}, 1)).ok());
  Sql("DROP OWNED BY server");
  Sql("DROP ROLE server");
}

TEST_F(PostgresStateStoreTest, BytesAreNotCompressed) {
  const auto store = Open();
  ASSERT_TRUE(store);
  const std::string zeros(1 << 20, '\0');
  ASSERT_TRUE(store->Commit(PutOf({"t", "s"}, 0, zeros, {MakeChunk(zeros)})).ok());
  EXPECT_EQ(Sql("SELECT pg_column_size(bytes) FROM mneme_chunks"), absl::StrCat(1 << 20));
  EXPECT_EQ(Sql("SELECT pg_column_size(value) FROM mneme_records"), absl::StrCat(1 << 20));
}

// Larger than what goes in one statement, or in a socket's buffers.
TEST_F(PostgresStateStoreTest, LargeTransactionsGoInOne) {
  const auto store = Open();
  ASSERT_TRUE(store);
  std::vector<NewChunk> chunks;
  for (int i = 0; i < 20; ++i) {
    chunks.push_back(MakeChunk(std::string((1 << 20) + i, static_cast<char>('a' + i))));
  }
  ASSERT_TRUE(store->Commit(PutOf({"t", "s"}, 0, "", chunks)).ok());
  for (const NewChunk& chunk : chunks) ASSERT_TRUE(*store->GetChunk("t", chunk.id) == chunk.bytes);
  EXPECT_EQ(Sql("SELECT count(DISTINCT xmin::text) FROM mneme_chunks"), "1");
  EXPECT_EQ(store->Stats()->chunk_bytes, 20 * (1 << 20) + 190);
}

TEST_F(PostgresStateStoreTest, ARestartIsHardlyNoticed) {
  const auto store = Open();
  ASSERT_TRUE(store);
  ASSERT_TRUE(store->Commit(PutOf({"t", "s"}, 0, "v")).ok());
  server_.Stop(SIGINT);
  const absl::Status gone = store->Get({"t", "s"}).status();
  EXPECT_EQ(gone.code(), absl::StatusCode::kUnavailable) << gone;
  EXPECT_FALSE(gone.GetPayload(kNotDurablePayload).has_value());
  EXPECT_TRUE(absl::IsUnavailable(store->Commit(PutOf({"t", "s"}, 1, "w"))));
  EXPECT_TRUE(absl::IsUnavailable(store->Probe()));
  MustRun();
  EXPECT_EQ(store->Get({"t", "s"})->value, "v");
  EXPECT_TRUE(store->Commit(PutOf({"t", "s"}, 1, "w")).ok());
}

// Writers are at it while the whole server dies, again and again.
TEST_F(PostgresStateStoreTest, KillLosesNothingAcknowledged) {
  constexpr int kThreads = 4, kKills = 3;
  const auto store = Open();
  ASSERT_TRUE(store);
  std::atomic<bool> stop{false};
  std::vector<int64_t> acknowledged(kThreads);
  std::atomic<int> commits{0}, failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const Key key{"t", absl::StrCat("s", t)};
      for (int64_t version = 0; !stop;) {
        const std::string text = absl::StrCat("commit ", t, " ", version);
        const absl::Status status =
            store->Commit(PutOf(key, version, text, {MakeChunk(text + std::string(9000, 'x'))}));
        if (status.ok()) {
          acknowledged[t] = ++version;
          ++commits;
          continue;
        }
        ++failures;
        // Settled either way: what is found now stays.
        EXPECT_TRUE(absl::IsUnavailable(status)) << status;
        auto record = store->Get(key);
        while (!stop && absl::IsUnavailable(record.status())) {
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
          record = store->Get(key);
        }
        if (record.ok()) version = record->version;
        EXPECT_GE(version, acknowledged[t]);
        EXPECT_LE(version, acknowledged[t] + 1);
      }
    });
  }
  for (int i = 0; i < kKills; ++i) {
    for (const int before = commits; commits < before + 30;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    // Power, an immediate shutdown, and one backend that crashes, which takes the others with it.
    if (i == 1) {
      server_.Stop(SIGQUIT);
      MustRun();
    } else if (i == 2) {
      const std::string pid =
          server_
              .Query(absl::StrCat("SELECT pid FROM pg_stat_activity WHERE datname = '", Database(),
                                  "' LIMIT 1"))
              .value_or("0");
      if (std::stoi(pid) > 1) kill(std::stoi(pid), SIGKILL);
    } else {
      server_.Kill();
      MustRun();
    }
  }
  for (const int before = commits; commits < before + 30;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  int64_t chunks = 0;
  for (int t = 0; t < kThreads; ++t) {
    const auto record = store->Get({"t", absl::StrCat("s", t)});
    ASSERT_TRUE(record.ok()) << record.status();
    EXPECT_GE(record->version, acknowledged[t]);
    EXPECT_EQ(record->value, absl::StrCat("commit ", t, " ", record->version - 1));
    EXPECT_TRUE(store->GetChunk("t", record->chunks[0]).ok());
    ++chunks;
  }
  EXPECT_EQ(store->Stats()->chunks, chunks);
}

// The connection breaks in the middle of a commit, in each way that there is. Every time the commit
// happens exactly once and says so.
class LostAnswerTest : public PostgresStateStoreTest,
                       public ::testing::WithParamInterface<PostgresProxy::Fault> {};

TEST_P(LostAnswerTest, IsSettledByAsking) {
  const auto store = OpenByProxy();
  ASSERT_TRUE(store);
  int64_t version = 0;
  const auto commit = [&](const NewChunk& chunk) {
    return store->Commit(PutOf({"t", "s"}, version, absl::StrCat(version), {chunk}));
  };
  // At the first step, at the writes, at the first and at a later token of a connection, at COMMIT,
  // and once more when the outcome is asked for.
  const std::vector<std::string> cases[] = {
      {"mneme_lock_records"}, {"mneme_add_chunks"}, {"mneme_first_token"},
      {"mneme_next_token"},   {"COMMIT"},           {"COMMIT", "mneme_settle"}};
  for (const std::vector<std::string>& statements : cases) {
    SCOPED_TRACE(statements.back());
    proxy_.Reset();  // a new connection, whose first token is still to come
    if (statements[0] != "mneme_first_token") {
      ASSERT_TRUE(commit(MakeChunk("before")).ok());
      ++version;
    }
    for (const std::string& statement : statements) proxy_.FailAt(statement, GetParam());
    const NewChunk chunk =
        MakeChunk(absl::StrCat("chunk of ", statements.back(), std::string(50000, '.')));
    const absl::Status status = commit(chunk);
    EXPECT_TRUE(status.ok()) << status;
    ++version;
    ASSERT_TRUE(proxy_.WaitForFaults());
    if (GetParam() == PostgresProxy::Fault::kLate) proxy_.DeliverLate();
    const auto record = store->Get({"t", "s"});
    ASSERT_TRUE(record.ok()) << record.status();
    EXPECT_EQ(record->version, version);
    EXPECT_EQ(record->value, absl::StrCat(version - 1));
    EXPECT_EQ(Sql("SELECT count(*) || ' ' || sum(refs) FROM mneme_chunks"), "1 1");
    EXPECT_EQ(*store->GetChunk("t", chunk.id), chunk.bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Faults, LostAnswerTest,
                         ::testing::Values(PostgresProxy::Fault::kLost,
                                           PostgresProxy::Fault::kNoAnswer,
                                           PostgresProxy::Fault::kLate),
                         [](const auto& info) {
                           return std::string(info.param == PostgresProxy::Fault::kLost ? "Lost"
                                              : info.param == PostgresProxy::Fault::kNoAnswer
                                                  ? "NoAnswer"
                                                  : "Late");
                         });

// The last reference to a chunk goes while a transaction waits to refer to it, and somebody brings
// the chunk back before the transaction has ended: it must not pass for having been there.
TEST_F(PostgresStateStoreTest, AChunkThatComesBackInMidCommitIsNotUncounted) {
  const auto store = Open();
  ASSERT_TRUE(store);
  const NewChunk chunk = MakeChunk("comes and goes");
  ASSERT_TRUE(store->Commit(PutOf({"t", "first"}, 0, "", {chunk})).ok());
  const auto target = PgTarget::Parse(uri_, absl::Seconds(5));
  ASSERT_TRUE(target.ok()) << target.status();
  auto deleting = PgConnection::Connect(*target), inserting = PgConnection::Connect(*target);
  ASSERT_TRUE(deleting.ok() && inserting.ok());
  const auto run = [](PgConnection& connection, const char* sql) {
    connection.Queue({"", sql});
    const PgOutcome outcome =
        connection.Run(std::chrono::steady_clock::now() + std::chrono::seconds(10));
    EXPECT_TRUE(outcome.ok()) << sql << ": " << outcome.status;
  };
  const auto waiting = [&] {
    return Sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == "1";
  };
  // In the way of the record that will refer to the chunk, behind the chunk's own statements.
  run(**inserting, "BEGIN");
  run(**inserting,
      "INSERT INTO mneme_records (realm, name, version, value, chunks) VALUES ('t', 'late', 1, '', "
      "'')");
  run(**deleting, "BEGIN");
  run(**deleting, "DELETE FROM mneme_records WHERE name = 'first'");
  run(**deleting, "DELETE FROM mneme_chunks");
  std::atomic<bool> ended{false};
  absl::Status status;
  std::thread late([&] {
    status = store->Commit(ReferTo({"t", "late"}, 0, {chunk.id}));
    ended = true;
  });
  EXPECT_TRUE(test::WaitFor(waiting));
  run(**deleting, "COMMIT");
  EXPECT_TRUE(test::WaitFor([&] { return ended || waiting(); }));
  EXPECT_TRUE(store->Commit(PutOf({"t", "second"}, 0, "", {chunk})).ok());
  run(**inserting, "ROLLBACK");
  late.join();
  EXPECT_TRUE(status.ok() || absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(Sql("SELECT refs FROM mneme_chunks"), status.ok() ? "2" : "1");
  EXPECT_EQ(store->Get({"t", "late"}).ok(), status.ok());
}

// What stands in the way of a transaction that is still under way when its outcome is asked for,
// also where the server may not be told to end it.
TEST_F(PostgresStateStoreTest, WhoAsksTakesTheToken) {
  ASSERT_TRUE(Open());
  const auto target = PgTarget::Parse(uri_, absl::Seconds(5));
  ASSERT_TRUE(target.ok()) << target.status();
  const auto run = [](PgConnection& connection) {
    return connection.Run(std::chrono::steady_clock::now() + std::chrono::seconds(10));
  };
  auto late = PgConnection::Connect(*target), asking = PgConnection::Connect(*target);
  ASSERT_TRUE(late.ok() && asking.ok());
  for (PgConnection* connection : {late->get(), asking->get()}) {
    for (const PgStatement* statement : kPrepared) connection->QueuePrepare(*statement);
    ASSERT_TRUE(run(*connection).ok());
  }
  const auto ask = [&](const char* writer) {
    (*asking)->Queue(kSettle, PgParams().Bytes(writer).Bytes("asked"));
    PgOutcome outcome = run(**asking);
    EXPECT_TRUE(outcome.ok()) << outcome.status;
    if (!outcome.ok()) return std::string("?");
    return outcome.rows[0].IsNull(0, 0) ? "none" : std::string(outcome.rows[0].Bytes(0, 0));
  };
  (*late)->Queue(kFirstToken, PgParams().Bytes("writer").Bytes("first"));
  ASSERT_TRUE(run(**late).ok());
  (*late)->Queue(kBegin);
  ASSERT_TRUE(run(**late).ok());
  EXPECT_EQ(ask("writer"), "first");
  EXPECT_EQ(ask("writer"), "first");  // its answer may be lost as well
  (*late)->Queue(kNextToken, PgParams().Bytes("writer").Bytes("second").Bytes("first"));
  (*late)->Queue(kCommit);
  PgOutcome refused = run(**late);
  EXPECT_EQ(refused.sqlstate, "22012") << refused.status;
  (*late)->Queue(kRollback);
  ASSERT_TRUE(run(**late).ok());
  EXPECT_EQ(Sql("SELECT convert_from(token, 'UTF8') FROM mneme_writers WHERE id = 'writer'"),
            "asked");
  // The first transaction of a writer.
  EXPECT_EQ(ask("new"), "none");
  (*late)->Queue(kFirstToken, PgParams().Bytes("new").Bytes("first"));
  refused = run(**late);
  EXPECT_EQ(refused.sqlstate, "23505") << refused.status;
}

TEST_F(PostgresStateStoreTest, BrokenConnectionsAreReplaced) {
  const auto store = OpenByProxy();
  ASSERT_TRUE(store);
  ASSERT_TRUE(store->Commit(PutOf({"t", "s"}, 0, "v")).ok());
  for (int64_t i = 0; i < 10; ++i) {
    proxy_.Reset();
    EXPECT_EQ(store->Get({"t", "s"})->value, "v");
    proxy_.Reset();
    EXPECT_TRUE(store->Commit(PutOf({"t", "s"}, i + 1, "v")).ok());
  }
}

TEST_F(PostgresStateStoreTest, AProxyThatHangsIsNoticed) {
  const auto store = OpenByProxy(absl::Milliseconds(500));
  ASSERT_TRUE(store);
  ASSERT_TRUE(store->Commit(PutOf({"t", "s"}, 0, "v")).ok());
  proxy_.Hang();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(absl::IsUnavailable(store->Get({"t", "s"}).status()));
  EXPECT_TRUE(absl::IsUnavailable(store->Commit(PutOf({"t", "s"}, 1, "w"))));
  // Each waits for a connection that is there, or for a new one (connect_timeout), and no longer.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
  proxy_.Forward();
  const auto record = store->Get({"t", "s"});
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->version, 1);
}

// While nobody can be asked the answer is "unknown"; what is found afterwards is final.
TEST_F(PostgresStateStoreTest, WhatCannotBeSettledAtOnceIsSettledBeforeTheNextUse) {
  const auto store = OpenByProxy(absl::Milliseconds(500));
  ASSERT_TRUE(store);
  ASSERT_TRUE(store->Commit(PutOf({"t", "s"}, 0, "v")).ok());
  proxy_.FailAt("COMMIT", PostgresProxy::Fault::kLate);
  absl::Status status;
  std::thread committer([&] { status = store->Commit(PutOf({"t", "s"}, 1, "w")); });
  ASSERT_TRUE(proxy_.WaitForFaults());
  proxy_.Hang();
  committer.join();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot be found out yet"));
  proxy_.Forward();
  const absl::StatusOr<Record> record = store->Get({"t", "s"});
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->version, 1);
  proxy_.DeliverLate();  // too late
  EXPECT_EQ(store->Get({"t", "s"})->version, 1);
  EXPECT_TRUE(store->Commit(PutOf({"t", "s"}, 1, "x")).ok());
}

TEST_F(PostgresStateStoreTest, WaitsAreBounded) {
  const auto store = Open({.max_connections = 2, .statement_timeout = absl::Milliseconds(700)});
  ASSERT_TRUE(store);
  ASSERT_TRUE(store->Commit(PutOf({"t", "s"}, 0, "v")).ok());
  // Somebody holds the record and goes on holding it.
  std::thread holder(
      [&] { Sql("BEGIN; SELECT 1 FROM mneme_records FOR UPDATE; SELECT pg_sleep(4); COMMIT"); });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  std::atomic<int> unavailable{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      unavailable += absl::IsUnavailable(store->Commit(PutOf({"t", "s"}, 1, "w")));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(unavailable, 4);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(3000));
  EXPECT_EQ(
      Sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mneme' AND datname "
          "= current_database()"),
      "2");
  holder.join();
  EXPECT_EQ(store->Get({"t", "s"})->version, 1);
  EXPECT_TRUE(store->Commit(PutOf({"t", "s"}, 1, "w")).ok());
}

TEST_F(PostgresStateStoreTest, AChangedByteIsDataLoss) {
  const auto store = Open();
  ASSERT_TRUE(store);
  const NewChunk chunk = MakeChunk(std::string(100000, 'q'));
  ASSERT_TRUE(store->Commit(PutOf({"t", "s"}, 0, "v", {chunk})).ok());
  Sql("UPDATE mneme_chunks SET bytes = set_byte(bytes, 50000, 0)");
  EXPECT_TRUE(absl::IsDataLoss(store->GetChunk("t", chunk.id).status()));
  Sql("UPDATE mneme_records SET chunks = substring(chunks FROM 2)");
  EXPECT_TRUE(absl::IsDataLoss(store->Get({"t", "s"}).status()));
  EXPECT_TRUE(absl::IsDataLoss(store->Commit(DeleteOf({"t", "s"}, 1))));
}

TEST_F(PostgresStateStoreTest, NoMessageHoldsThePassword) {
  for (const char* uri :
       {"postgresql://ada:s3cret@127.0.0.1:1/m", "postgresql://ada:s3cret@nowhere.invalid/m",
        "postgresql://127.0.0.1:1/m?password=s3cret", "postgresql://ada:s3cret@127.0.0.1:x/m"}) {
    const auto store = OpenPostgresStore({.uri = uri});
    EXPECT_FALSE(store.ok());
    EXPECT_THAT(std::string(store.status().message()), Not(HasSubstr("s3cret")));
  }
}

}  // namespace
}  // namespace mneme::memstore
