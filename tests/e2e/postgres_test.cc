// Sessions of a real mneme-server in a real PostgreSQL.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tests/e2e/postgres_test_base.h"

namespace mneme::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

using PostgresTest = PostgresTestBase;

TEST_F(PostgresTest, ASessionGoesOnAfterKill9) {
  const std::string uri = database_.NewDatabase();
  const std::vector<std::string> texts = {"Once upon a time", " there was", " a server"};
  std::vector<std::vector<int32_t>> expected;
  auto server = Start(uri);
  ASSERT_NE(server, nullptr);
  {
    auto client = Connect(*server);
    Create(client, "undisturbed");
    for (const std::string& text : texts) {
      expected.push_back(Turn(client, "undisturbed", text));
      ASSERT_FALSE(expected.back().empty());
    }
    Create(client, "s");
    EXPECT_EQ(Turn(client, "s", texts[0]), expected[0]);
  }
  // kill -9 of the server, then of the database as well.
  for (int generation = 1; generation <= 2; ++generation) {
    server->Kill();
    if (generation == 2) {
      database_.Kill();
      ASSERT_TRUE(database_.Run().ok());
    }
    server = Start(uri);
    ASSERT_NE(server, nullptr);
    auto client = Connect(*server);
    EXPECT_EQ(Turn(client, "s", texts[generation]), expected[generation]);
    EXPECT_THAT(server->Out(),
                HasSubstr("sessions: 2, damaged: 0, deleted: 0, kept in postgresql:"));
  }
}

// Out of one server's store into another's, while the session goes on and is kept at a point.
TEST_F(PostgresTest, AnExportedSessionGoesOnElsewhere) {
  auto server = Start(database_.NewDatabase());
  ASSERT_NE(server, nullptr);
  auto client = Connect(*server);
  Create(client, "s");
  ASSERT_FALSE(Turn(client, "s", "Once upon a time").empty());
  v1::CreateSnapshotRequest keep;
  keep.set_parent("s");
  keep.set_snapshot_id("kept");
  ASSERT_TRUE(client.CreateSnapshot(keep).ok());
  const std::vector<int32_t> expected = Turn(client, "s", " there was");
  std::stringstream file;
  auto exported = client.ExportSession(file, {.session = "s@kept"});
  ASSERT_TRUE(exported.ok()) << exported.status();
  EXPECT_EQ(exported->version, 1);

  const TemporaryFolder other_folder;
  ServerProcess::Options options = Options(database_.NewDatabase());
  options.folder = other_folder.path();
  auto other = ServerProcess::Start(options);
  ASSERT_TRUE(other.ok()) << other.status();
  auto elsewhere = Connect(**other);
  client::ImportOptions import;
  import.start.set_session_id("moved");
  auto imported = elsewhere.ImportSession(file, import);
  ASSERT_TRUE(imported.ok()) << imported.status();
  (*other)->Kill();
  other = ServerProcess::Start(options);
  ASSERT_TRUE(other.ok()) << other.status();
  elsewhere = Connect(**other);
  EXPECT_EQ(Turn(elsewhere, "moved", " there was"), expected);
}

TEST_F(PostgresTest, ADatabaseThatIsGoneIsToldAndComesBack) {
  const std::string uri = database_.NewDatabase();
  auto server = Start(uri);
  ASSERT_NE(server, nullptr);
  auto client = Connect(*server);
  Create(client, "s");
  database_.Stop(SIGINT);
  const auto gone = client.GetSession("s");
  EXPECT_EQ(client::ErrorOf(gone.status()).reason, "STORE_UNAVAILABLE") << gone.status();
  ASSERT_TRUE(database_.Run().ok());
  EXPECT_FALSE(Turn(client, "s", "again").empty());
}

TEST_F(PostgresTest, StartUpFailsWithTheStoresCodeAndWithoutThePassword) {
  const auto run = [&](const std::string& uri, const std::vector<std::string>& flags) {
    ServerProcess::Options options = Options(uri);
    options.flags = flags;
    return ChildProcess::Run(
        {.command = ServerProcess::Command(options), .folder = folder_.path(), .name = "short"});
  };
  auto nobody = run("postgresql://ada:s3cret@127.0.0.1:1/mneme", {});
  EXPECT_EQ(nobody.code, 4) << nobody.err;
  EXPECT_THAT(nobody.err, HasSubstr("127.0.0.1"));
  auto undurable = run(database_.NewDatabase(), {"--store.postgres.synchronous_standbys", "1"});
  EXPECT_EQ(undurable.code, 4) << undurable.err;
  EXPECT_THAT(undurable.err, HasSubstr("synchronous_standby_names"));
  auto unreadable = run("postgresql://ada:s3cret@db/mneme?sslmod=require", {});
  EXPECT_EQ(unreadable.code, 2) << unreadable.err;
  auto printed = run("postgresql://ada:s3cret@db/mneme", {"--print-config"});
  EXPECT_EQ(printed.code, 0) << printed.err;
  EXPECT_THAT(printed.out, HasSubstr("path: \"postgresql://ada:****@db/mneme\""));
  for (const auto& result : {nobody, unreadable, printed}) {
    EXPECT_THAT(result.out + result.err, Not(HasSubstr("s3cret")));
  }
}

}  // namespace
}  // namespace mneme::test
