// Standbys, settings that lose commits, and a full disk: servers of PostgreSQL of their own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memstore/state_store.h"
#include "tests/memstore/store_testing.h"
#include "tests/support/postgres_server.h"

namespace mneme::memstore {
namespace {

using mneme::test::PostgresServer;
using ::testing::HasSubstr;

bool SaysNotDurable(const absl::Status& status) {
  return absl::IsUnavailable(status) && status.GetPayload(kNotDurablePayload).has_value();
}

std::unique_ptr<PostgresServer> MustStart(const PostgresServer::Options& options = {}) {
  auto server = PostgresServer::Start(options);
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? *std::move(server) : nullptr;
}

TEST(PostgresDurabilityTest, AServerThatDoesNotSyncIsRefused) {
  const auto server = MustStart({.settings = {{"fsync", "off"}}});
  ASSERT_TRUE(server);
  const auto store = OpenPostgresStore({.uri = server->NewDatabase()});
  EXPECT_TRUE(SaysNotDurable(store.status())) << store.status();
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("fsync"));
}

// What the operator set for everybody is not what a commit with sync means.
TEST(PostgresDurabilityTest, SynchronousCommitIsTurnedOn) {
  PostgresServer& server = PostgresServer::Shared();
  const std::string uri = server.NewDatabase();
  ASSERT_TRUE(server.Query("ALTER ROLE mneme SET synchronous_commit = off").ok());
  const auto store = OpenPostgresStore({.uri = uri});
  ASSERT_TRUE(store.ok()) << store.status();
  for (int i = 0; i < 2; ++i) {
    const std::string name = absl::StrCat("s", i);
    ASSERT_TRUE((*store)->Commit(PutOf({"t", name}, 0, "v")).ok());
    server.Kill();  // at once: nothing that is not on disk is there afterwards
    ASSERT_TRUE(server.Run().ok());
    EXPECT_TRUE((*store)->Get({"t", name}).ok()) << i;
  }
  ASSERT_TRUE(server.Query("ALTER ROLE mneme RESET synchronous_commit").ok());
}

TEST(PostgresDurabilityTest, AcknowledgedCommitsSurviveTheLossOfThePrimary) {
  const auto primary = MustStart();
  ASSERT_TRUE(primary);
  const std::string database = "postgres";
  PostgresOptions options{.uri = primary->Uri(database),
                          .statement_timeout = absl::Seconds(2),
                          .synchronous_standbys = 1};
  // Not as long as the server does not wait for one.
  EXPECT_TRUE(SaysNotDurable(OpenPostgresStore(options).status()));

  auto started = PostgresServer::StartStandby(*primary, "spare");
  ASSERT_TRUE(started.ok()) << started.status();
  PostgresServer& standby = **started;
  ASSERT_TRUE(primary->Query("ALTER SYSTEM SET synchronous_standby_names = 'spare'").ok());
  ASSERT_TRUE(primary->Query("SELECT pg_reload_conf()").ok());
  for (int i = 0; i < 500 && *primary->Query("SHOW synchronous_standby_names") != "spare"; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }

  // Both are named; the one that takes writes is found.
  options.uri =
      absl::StrCat("postgresql:///", database, "?user=mneme&host=", primary->folder().string(), ",",
                   standby.folder().string());
  auto opened = OpenPostgresStore(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  StateStore& store = **opened;
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(
        store.Commit(PutOf({"t", absl::StrCat("s", i)}, 0, "v", {MakeChunk(absl::StrCat(i))}))
            .ok());
  }

  // Without its standby a commit is not acknowledged. The server keeps it; nobody else does.
  standby.Stop(SIGINT);
  const absl::Status alone = store.Commit(PutOf({"t", "alone"}, 0, "v"));
  EXPECT_TRUE(SaysNotDurable(alone)) << alone;
  EXPECT_TRUE(SaysNotDurable(store.Probe()));
  EXPECT_EQ(store.Get({"t", "s0"})->value, "v");  // reading goes on
  Transaction relaxed = PutOf({"t", "relaxed"}, 0, "v");
  relaxed.sync = false;
  EXPECT_TRUE(store.Commit(relaxed).ok());
  ASSERT_TRUE(standby.Run().ok());
  for (int i = 0; i < 500 && !store.Probe().ok(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(store.Commit(PutOf({"t", "both"}, 0, "v")).ok());

  primary->Kill();
  ASSERT_TRUE(standby.Query("SELECT pg_promote()").ok());
  // The new primary waits for nobody yet: reading only.
  absl::StatusOr<Record> record = store.Get({"t", "both"});
  for (int i = 0; i < 500 && !record.ok(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    record = store.Get({"t", "both"});
  }
  ASSERT_TRUE(record.ok()) << record.status();
  for (int i = 0; i < 50; ++i) {
    const auto found = store.Get({"t", absl::StrCat("s", i)});
    ASSERT_TRUE(found.ok()) << i << ": " << found.status();
    EXPECT_TRUE(store.GetChunk("t", found->chunks[0]).ok());
  }
  EXPECT_TRUE(SaysNotDurable(store.Commit(PutOf({"t", "new"}, 0, "v"))));
  opened->reset();
  options.synchronous_standbys = 0;
  opened = OpenPostgresStore(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_TRUE((*opened)->Commit(PutOf({"t", "new"}, 0, "v")).ok());
}

// Tables on a file system of 24 MB that is really full.
TEST(PostgresDurabilityTest, AFullDiskRefusesGrowthAndKeepsReadingAndDeleting) {
  const auto server = MustStart({.settings = {{"autovacuum", "off"}}, .small_disk_mb = 24});
  ASSERT_TRUE(server);
  ASSERT_TRUE(server
                  ->Query(absl::StrCat("CREATE TABLESPACE small LOCATION '",
                                       server->small_disk().string(), "'"))
                  .ok());
  ASSERT_TRUE(server->Query("CREATE DATABASE full_disk TABLESPACE small").ok());
  const auto opened = OpenPostgresStore({.uri = server->Uri("full_disk")});
  ASSERT_TRUE(opened.ok()) << opened.status();
  StateStore& store = **opened;
  // What the operator finds to give back: vacuum itself needs a page or two.
  const char* reserve =
      "CREATE TABLE reserve AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)";
  ASSERT_TRUE(server->Query(reserve, "full_disk").ok());
  absl::Status status;
  int stored = 0;
  const auto chunk_of = [](int number) {
    std::string bytes(256 << 10, static_cast<char>(number));
    return MakeChunk(std::move(bytes));
  };
  for (; stored < 200; ++stored) {
    const std::string name = absl::StrCat("s", stored);
    status = store.Commit(PutOf({"t", name}, 0, "v", {chunk_of(stored)}));
    if (!status.ok()) break;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  ASSERT_GT(stored, 5);
  // To the last page.
  for (int i = 0; i < 1000; ++i) {
    Transaction put = PutOf({"t", absl::StrCat("small", i)}, 0, std::string(2000, 'x'));
    put.sync = false;
    status = store.Commit(put);
    if (!status.ok()) break;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  // Nothing of what was refused is there; all else is, and can be read.
  EXPECT_EQ(store.Stats()->chunks, stored);
  for (int i = 0; i < stored; ++i) {
    EXPECT_EQ(store.Get({"t", absl::StrCat("s", i)})->version, 1);
    EXPECT_TRUE(store.GetChunk("t", chunk_of(i).id).ok());
  }
  // A mark in a record, such as "deleted", then the record itself.
  for (int i = 0; i < stored; ++i) {
    const std::string name = absl::StrCat("s", i);
    const absl::Status marked = store.Commit(ReferTo({"t", name}, 1, {chunk_of(i).id}));
    EXPECT_TRUE(marked.ok()) << i << ": " << marked;
    const absl::Status deleted = store.Commit(DeleteOf({"t", name}, marked.ok() ? 2 : 1));
    EXPECT_TRUE(deleted.ok()) << i << ": " << deleted;
  }
  EXPECT_EQ(store.Stats()->chunks, 0);
  // PostgreSQL's vacuum gives the room of what was deleted back.
  ASSERT_TRUE(server->Query("DROP TABLE reserve", "full_disk").ok());
  const auto vacuumed = server->Query("VACUUM", "full_disk");
  ASSERT_TRUE(vacuumed.ok()) << vacuumed.status();
  EXPECT_TRUE(store.Commit(PutOf({"t", "again"}, 0, "v", {chunk_of(0)})).ok());
}

}  // namespace
}  // namespace mneme::memstore
