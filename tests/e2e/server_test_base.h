// Real mneme-servers of the tiny model, and what tests ask of them.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "tests/support/server_process.h"

namespace mneme::test {

class ServerTestBase : public ::testing::Test {
 protected:
  ServerProcess::Options Options(std::vector<std::string> flags = {}) {
    flags.insert(flags.begin(), {"--drain.pre_stop_delay", "0s"});
    return {.binary = MNEME_SERVER_BINARY,
            .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
            .folder = folder_.path(),
            .flags = std::move(flags)};
  }
  // nullptr, and a failure, if it does not listen.
  static std::unique_ptr<ServerProcess> Start(const ServerProcess::Options& options) {
    auto server = ServerProcess::Start(options);
    EXPECT_TRUE(server.ok()) << server.status();
    return server.ok() ? *std::move(server) : nullptr;
  }
  static client::Client Connect(const ServerProcess& server) { return Connect(server.address()); }
  static client::Client Connect(const std::string& address) {
    auto client = client::Client::Connect({.server = address, .work_timeout = absl::Seconds(120)});
    EXPECT_TRUE(client.ok()) << client.status();
    return *client;
  }
  static void Create(client::Client& client, const std::string& id) {
    v1::CreateSessionRequest request;
    request.set_session_id(id);
    const auto created = client.CreateSession(request);
    ASSERT_TRUE(created.ok()) << created.status();
  }
  // A turn that says the same each time; stateless if `session` is empty.
  static v1::GenerateRequest Request(const std::string& session, const std::string& text,
                                     int tokens) {
    v1::GenerateRequest request;
    request.set_session(session);
    request.set_text(text);
    request.set_max_output_tokens(tokens);
    request.set_ignore_eos(true);
    request.mutable_sampling()->set_seed(11);
    return request;
  }

  TemporaryFolder folder_;
};

}  // namespace mneme::test
