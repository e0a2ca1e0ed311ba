// Real mneme-servers with their sessions in a real PostgreSQL.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/e2e/server_test_base.h"
#include "tests/support/postgres_server.h"

namespace mneme::test {

class PostgresTestBase : public ServerTestBase {
 protected:
  ServerProcess::Options Options(const std::string& uri) {
    ServerProcess::Options options = ServerTestBase::Options();
    options.store = uri;
    return options;
  }
  std::unique_ptr<ServerProcess> Start(const std::string& uri) {
    return ServerTestBase::Start(Options(uri));
  }
  // The tokens of a turn, which waits for others' if they run.
  static std::vector<int32_t> Turn(client::Client& client, const std::string& session,
                                   const std::string& text) {
    v1::GenerateRequest request = Request(session, text, 12);
    request.set_conflict_policy(v1::GenerateRequest::QUEUE);
    const auto result = client.Complete(request);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    EXPECT_TRUE(result->final().committed());
    EXPECT_EQ(result->final().usage().recomputed_tokens(), 0);
    return {result->token_ids().begin(), result->token_ids().end()};
  }

  PostgresServer& database_ = PostgresServer::Shared();
};

}  // namespace mneme::test
