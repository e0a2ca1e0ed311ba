// A GPU that fails under a real server, in the middle of a turn: the client is told, health says
// so, and the server that is started in its place goes on from the last commit of every session.
#include <gtest/gtest.h>
#include <signal.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/client.h"
#include "tests/support/emulated_gpus.h"
#include "tests/support/http_get.h"
#include "tests/support/server_process.h"

namespace mneme::test {
namespace {

class DeviceFaultTest : public ::testing::Test {
 protected:
  std::unique_ptr<ServerProcess> Start() {
    auto server = ServerProcess::Start(
        {.binary = MNEME_SERVER_BINARY,
         .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
         .folder = folder_.path(),
         .flags = {"--drain.pre_stop_delay", "0s", "--engine.backend", "cuda-emu"}});
    EXPECT_TRUE(server.ok()) << server.status();
    return server.ok() ? *std::move(server) : nullptr;
  }
  static client::Client Connect(const ServerProcess& server) {
    auto client =
        client::Client::Connect({.server = server.address(), .work_timeout = absl::Seconds(120)});
    EXPECT_TRUE(client.ok()) << client.status();
    return *client;
  }
  static v1::GenerateRequest Turn(const std::string& session, const std::string& text, int tokens) {
    v1::GenerateRequest request;
    request.set_session(session);
    request.set_text(text);
    request.set_max_output_tokens(tokens);
    request.set_ignore_eos(true);
    request.mutable_sampling()->set_temperature(0);
    return request;
  }
  // The exit code of `mneme status`.
  int StatusOf(const ServerProcess& server) {
    return ChildProcess::Run({.command = {MNEME_CLI_BINARY, "status", "--server", server.address()},
                              .folder = folder_.path(),
                              .name = "status"})
        .code;
  }

  TemporaryFolder folder_;
  EmulatedGpus gpus_{/*count=*/1, folder_.path()};
};

TEST_F(DeviceFaultTest, EndsTheTurnAndLosesNothingThatWasCommitted) {
  auto server = Start();
  ASSERT_NE(server, nullptr);
  client::Client client = Connect(*server);
  v1::CreateSessionRequest create;
  create.set_session_id("s");
  ASSERT_TRUE(client.CreateSession(create).ok());
  ASSERT_TRUE(client.Complete(Turn("s", "The keeper of the lighthouse", 5)).ok());
  EXPECT_EQ(StatusOf(*server), 0);
  EXPECT_EQ(HttpGet(server->metrics_address(), "/readyz").code, 200);

  // The answer begins, then the device fails.
  auto started = client.Generate(Turn("s", " wrote", 2000));
  ASSERT_TRUE(started.ok()) << started.status();
  client::GenerateStream stream = *std::move(started);
  v1::GenerateResponse event;
  int tokens = 0;
  while (stream.Next(&event)) {
    if (!event.has_delta()) continue;
    if (tokens < 3 && tokens + event.delta().token_ids_size() >= 3) gpus_.Order("launch 5 0");
    tokens += event.delta().token_ids_size();
  }
  const absl::Status failed = stream.Finish().status();
  EXPECT_GE(tokens, 3);
  EXPECT_LT(tokens, 2000);
  EXPECT_EQ(failed.code(), absl::StatusCode::kInternal) << failed;
  EXPECT_EQ(client::ErrorOf(failed).reason, "BACKEND_FAILED");
  for (const char* part : {"cuda-emu:0", "cudaErrorIllegalAddress", "restarted"}) {
    EXPECT_NE(failed.message().find(part), std::string::npos) << part << ": " << failed;
  }

  // Nobody should send work here any more, and whoever does hears why at once.
  EXPECT_EQ(client::ErrorOf(client.Complete(Turn("s", "more", 3)).status()).reason,
            "BACKEND_FAILED");
  const HttpReply ready = HttpGet(server->metrics_address(), "/readyz");
  EXPECT_EQ(ready.code, 503);
  EXPECT_NE(ready.body.find("cuda-emu:0"), std::string::npos) << ready.body;
  EXPECT_EQ(HttpGet(server->metrics_address(), "/healthz").code, 503);
  for (int i = 0; i < 1000 && StatusOf(*server) != 5; ++i) absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(StatusOf(*server), 5);
  EXPECT_NE(server->Log().find("restart the server"), std::string::npos) << server->Log();
  auto session = client.GetSession("s");
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->version(), 1);

  // It still drains like any other.
  server->Signal(SIGTERM);
  EXPECT_EQ(server->Wait().code, 0);

  server = Start();
  ASSERT_NE(server, nullptr);
  client = Connect(*server);
  EXPECT_EQ(StatusOf(*server), 0);
  session = client.GetSession("s");
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->version(), 1);
  const auto rest = client.Complete(Turn("s", "", 6));
  ASSERT_TRUE(rest.ok()) << rest.status();
  const auto whole = client.Complete(Turn("", "The keeper of the lighthouse", 11));
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_EQ(whole->token_ids_size(), 11);
  EXPECT_TRUE(std::equal(rest->token_ids().begin(), rest->token_ids().end(),
                         whole->token_ids().begin() + 5, whole->token_ids().end()));
}

}  // namespace
}  // namespace mneme::test
