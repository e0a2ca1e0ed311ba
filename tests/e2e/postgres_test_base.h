// Real mneme-servers with their sessions in a real PostgreSQL.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "tests/support/postgres_server.h"
#include "tests/support/server_process.h"

namespace mneme::test {

class PostgresTestBase : public ::testing::Test {
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
  static v1::GenerateRequest Request(const std::string& session, const std::string& text,
                                     int max_output_tokens = 12) {
    v1::GenerateRequest request;
    request.set_session(session);
    request.set_text(text);
    request.set_max_output_tokens(max_output_tokens);
    request.set_ignore_eos(true);
    request.mutable_sampling()->set_seed(11);
    return request;
  }
  // The tokens of a turn, which waits for others' if they run.
  static std::vector<int32_t> Turn(client::Client& client, const std::string& session,
                                   const std::string& text) {
    v1::GenerateRequest request = Request(session, text);
    request.set_conflict_policy(v1::GenerateRequest::QUEUE);
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

}  // namespace mneme::test
