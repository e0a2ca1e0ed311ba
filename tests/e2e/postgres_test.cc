// Sessions of a real mneme-server in a real PostgreSQL.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "tests/support/http_get.h"
#include "tests/support/postgres_server.h"
#include "tests/support/server_process.h"

namespace mneme::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class PostgresTest : public ::testing::Test {
 protected:
  ServerProcess::Options Options(const std::string& uri) {
    return {.binary = MNEME_SERVER_BINARY,
            .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
            .folder = folder_.path(),
            .store = uri,
            .flags = {"--drain.pre_stop_delay", "0s"}};
  }
  std::unique_ptr<ServerProcess> Start(const std::string& uri) {
    auto server = ServerProcess::Start(Options(uri));
    EXPECT_TRUE(server.ok()) << server.status();
    return server.ok() ? *std::move(server) : nullptr;
  }
  static client::Client Connect(const ServerProcess& server) {
    auto client =
        client::Client::Connect({.server = server.address(), .work_timeout = absl::Seconds(120)});
    EXPECT_TRUE(client.ok()) << client.status();
    return *client;
  }
  static void Create(client::Client& client, const std::string& id) {
    v1::CreateSessionRequest request;
    request.set_session_id(id);
    const auto created = client.CreateSession(request);
    ASSERT_TRUE(created.ok()) << created.status();
  }
  // The tokens of a turn.
  static std::vector<int32_t> Turn(client::Client& client, const std::string& session,
                                   const std::string& text) {
    v1::GenerateRequest request;
    request.set_session(session);
    request.set_text(text);
    request.set_max_output_tokens(12);
    request.set_ignore_eos(true);
    request.mutable_sampling()->set_seed(11);
    const auto result = client.Complete(request);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    EXPECT_TRUE(result->final().committed());
    EXPECT_EQ(result->final().usage().recomputed_tokens(), 0);
    return {result->token_ids().begin(), result->token_ids().end()};
  }

  TemporaryFolder folder_;
  PostgresServer& database_ = PostgresServer::Shared();
};

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

// Two servers at once, with a session of each other's.
TEST_F(PostgresTest, ServersShareTheirSessions) {
  const std::string uri = database_.NewDatabase();
  const TemporaryFolder other_folder;
  auto a = Start(uri);
  ServerProcess::Options options = Options(uri);
  options.folder = other_folder.path();
  auto b = ServerProcess::Start(options);
  ASSERT_TRUE(a != nullptr && b.ok()) << b.status();
  auto client_a = Connect(*a), client_b = Connect(**b);
  Create(client_a, "alone");
  Create(client_a, "shared");
  for (int turn = 0; turn < 4; ++turn) {
    const std::string text = absl::StrCat("turn ", turn);
    EXPECT_EQ(Turn(turn % 2 == 0 ? client_a : client_b, "shared", text),
              Turn(client_a, "alone", text));
  }
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
