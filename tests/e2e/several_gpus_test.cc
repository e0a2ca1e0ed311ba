// A real server with a model on each of two GPUs: where a model is changes none of its tokens, each
// device has its own budget, and one that fails takes nothing with it that is on the other.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
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

class SeveralGpusTest : public ::testing::Test {
 protected:
  // `second`: what stands behind the path of model b.
  ServerProcess::Options Options(const std::string& second) {
    return {.binary = MNEME_SERVER_BINARY,
            .model = absl::StrCat("a=", MNEME_TINY_MODEL),
            .folder = folder_.path(),
            .flags = {"--model", absl::StrCat("b=", MNEME_TINY_MODEL, second),
                      "--drain.pre_stop_delay", "0s", "--engine.backend", "cuda-emu"}};
  }
  void Start(const std::string& second) {
    auto server = ServerProcess::Start(Options(second));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    auto client =
        client::Client::Connect({.server = server_->address(), .work_timeout = absl::Seconds(120)});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = std::make_unique<client::Client>(*client);
  }
  void Create(const std::string& id, const std::string& model) {
    v1::CreateSessionRequest create;
    create.set_session_id(id);
    create.mutable_session()->set_model(absl::StrCat("models/", model));
    ASSERT_TRUE(client_->CreateSession(create).ok());
  }
  static v1::GenerateRequest Turn(const std::string& session, const std::string& text, int tokens) {
    v1::GenerateRequest request;
    request.set_session(session);
    request.set_text(text);
    request.set_max_output_tokens(tokens);
    request.set_ignore_eos(true);
    request.set_add_bos(v1::GenerateRequest::ADD_BOS_NEVER);
    request.mutable_sampling()->set_seed(3);
    return request;
  }
  std::vector<int32_t> Run(const std::string& session, const std::string& text) {
    auto turn = client_->Complete(Turn(session, text, 12));
    EXPECT_TRUE(turn.ok()) << session << ": " << turn.status();
    if (!turn.ok()) return {};
    return {turn->token_ids().begin(), turn->token_ids().end()};
  }
  void WaitForLog(const char* text) {
    for (int i = 0; i < 1000 && server_->Log().find(text) == std::string::npos; ++i) {
      absl::SleepFor(absl::Milliseconds(20));
    }
  }
  std::string Metrics() { return HttpGet(server_->metrics_address(), "/metrics").body; }

  TemporaryFolder folder_;
  EmulatedGpus gpus_{/*count=*/2, folder_.path()};
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<client::Client> client_;
};

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << text

TEST_F(SeveralGpusTest, AModelOnTheSecondAnswersAsOnTheFirst) {
  // Both on the first; then one moves, with its session.
  ASSERT_NO_FATAL_FAILURE(Start(""));
  Create("of-a", "a");
  Create("of-b", "b");
  const std::vector<int32_t> first = Run("of-a", "The keeper of the lighthouse");
  EXPECT_EQ(Run("of-b", "The keeper of the lighthouse"), first);
  server_->Kill();

  ASSERT_NO_FATAL_FAILURE(Start(",device=1"));
  EXPECT_HAS(server_->Out(), "on cuda-emu:1 (emulated on the host)");
  EXPECT_HAS(server_->Out(),
             "backend: cuda-emu:0 (emulated on the host), cuda-emu:1 (emulated on the host)");
  const std::vector<int32_t> second = Run("of-a", " wrote");
  EXPECT_EQ(Run("of-b", " wrote"), second);
  EXPECT_FALSE(second.empty());

  auto a = client_->GetModel("a"), b = client_->GetModel("b");
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->device(), "cuda-emu:0 (emulated on the host)");
  EXPECT_EQ(b->device(), "cuda-emu:1 (emulated on the host)");
  EXPECT_EQ(a->numerics_id(), b->numerics_id());
  const auto shown = ChildProcess::Run(
      {.command = {MNEME_CLI_BINARY, "models", "get", "b", "--server", server_->address()},
       .folder = folder_.path(),
       .name = "get"});
  EXPECT_HAS(shown.out, "cuda-emu:1 (emulated on the host)");

  const std::string metrics = Metrics();
  EXPECT_HAS(metrics, "device=\"cuda-emu:0\"");
  EXPECT_HAS(metrics, "device=\"cuda-emu:1\"");
  for (const char* tier : {"cuda-emu:0", "cuda-emu:1"}) {
    // One idle session each.
    EXPECT_HAS(metrics, absl::StrCat("mneme_sessions{state=\"active\",tier=\"", tier, "\"} 1"));
  }
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait().code, 0);
}

TEST_F(SeveralGpusTest, OneThatFailsLeavesTheOtherServing) {
  ASSERT_NO_FATAL_FAILURE(Start(",device=1"));
  Create("of-a", "a");
  Create("of-b", "b");
  const std::vector<int32_t> first = Run("of-a", "The keeper");
  EXPECT_EQ(Run("of-b", "The keeper"), first);
  gpus_.Order("launch 9 1");
  const absl::Status failed = client_->Complete(Turn("of-b", " wrote", 12)).status();
  EXPECT_EQ(client::ErrorOf(failed).reason, "BACKEND_FAILED") << failed;
  EXPECT_HAS(std::string(failed.message()), "cuda-emu:1");

  EXPECT_FALSE(Run("of-a", " wrote").empty());
  EXPECT_EQ(client_->GetSession("of-a")->version(), 2);
  EXPECT_EQ(client_->GetSession("of-b")->version(), 1);
  EXPECT_EQ(HttpGet(server_->metrics_address(), "/readyz").code, 503);
  EXPECT_EQ(HttpGet(server_->metrics_address(), "/healthz").code, 200);
  WaitForLog("is not served any more");
  EXPECT_HAS(server_->Log(), "cuda-emu:1 is lost; restart the server");
  EXPECT_HAS(server_->Log(), "models/b is not served any more");
}

// One model, a copy on each: calls are spread, and with one device the other has them all.
TEST_F(SeveralGpusTest, CopiesOfAModelAnswerAsOne) {
  ServerProcess::Options options = Options("");
  options.model += ",device=0,device=1";
  options.flags.erase(options.flags.begin(), options.flags.begin() + 2);  // no model b
  auto server = ServerProcess::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  auto client =
      client::Client::Connect({.server = server_->address(), .work_timeout = absl::Seconds(120)});
  ASSERT_TRUE(client.ok()) << client.status();
  client_ = std::make_unique<client::Client>(*client);
  EXPECT_EQ(client_->GetModel("a")->device(),
            "cuda-emu:0 (emulated on the host), cuda-emu:1 (emulated on the host)");

  // A long turn on the first sends the next one to the second.
  Create("s", "a");
  Create("t", "a");
  std::vector<int32_t> of_s, of_t;
  auto stream = client_->Generate(Turn("s", "The keeper", 60));
  ASSERT_TRUE(stream.ok()) << stream.status();
  v1::GenerateResponse event;
  while (of_s.empty() && stream->Next(&event)) {
    of_s.insert(of_s.end(), event.delta().token_ids().begin(), event.delta().token_ids().end());
  }
  of_t = Run("t", "The keeper");
  while (stream->Next(&event)) {
    of_s.insert(of_s.end(), event.delta().token_ids().begin(), event.delta().token_ids().end());
  }
  ASSERT_TRUE(stream->Finish().ok());
  ASSERT_EQ(of_s.size(), 60u);
  EXPECT_TRUE(std::equal(of_t.begin(), of_t.end(), of_s.begin()));
  for (const char* tier : {"cuda-emu:0", "cuda-emu:1"}) {
    EXPECT_HAS(Metrics(), absl::StrCat("mneme_sessions{state=\"active\",tier=\"", tier, "\"} 1"));
  }
  // A session goes on where its state is.
  const std::vector<int32_t> next = Run("t", "; she wrote");
  for (const char* tier : {"cuda-emu:0", "cuda-emu:1"}) {
    EXPECT_HAS(Metrics(), absl::StrCat("mneme_sessions{state=\"active\",tier=\"", tier, "\"} 1"));
  }

  gpus_.Order("launch 4 1");
  EXPECT_EQ(client::ErrorOf(client_->Complete(Turn("t", "; and", 12)).status()).reason,
            "BACKEND_FAILED");
  ASSERT_TRUE(gpus_.Taken());
  // The session is at its last commit, and goes on from there on the device that is left.
  EXPECT_EQ(client_->GetSession("t")->version(), 2);
  const std::vector<int32_t> after = Run("t", "; and");
  v1::GenerateRequest whole = Turn("", "", 12);
  auto* ids = whole.mutable_token_ids()->mutable_ids();
  for (const std::string text : {"The keeper", "; she wrote", "; and"}) {
    v1::TokenizeRequest tokenize;
    tokenize.set_text(text);
    auto tokens = client_->Tokenize(tokenize);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    ids->Add(tokens->token_ids().begin(), tokens->token_ids().end());
    if (text == "The keeper") ids->Add(of_t.begin(), of_t.end());
    if (text == "; she wrote") ids->Add(next.begin(), next.end());
  }
  auto expected = client_->Complete(whole);
  ASSERT_TRUE(expected.ok()) << expected.status();
  EXPECT_TRUE(std::ranges::equal(expected->token_ids(), after));
  WaitForLog("is lost");
  EXPECT_EQ(server_->Log().find("is not served"), std::string::npos) << server_->Log();
  EXPECT_EQ(HttpGet(server_->metrics_address(), "/readyz").code, 503);
  EXPECT_EQ(HttpGet(server_->metrics_address(), "/healthz").code, 200);
}

TEST_F(SeveralGpusTest, ADeviceThatIsNotThereEndsTheServer) {
  const auto run = [&](const ServerProcess::Options& options) {
    return ChildProcess::Run(
        {.command = ServerProcess::Command(options), .folder = folder_.path(), .name = "short"});
  };
  const ChildProcess::Result third = run(Options(",device=2"));
  EXPECT_EQ(third.code, 3);
  EXPECT_HAS(third.err, "model b: there is no CUDA device 2: this machine has 2, numbers 0 to 1");
  ServerProcess::Options on_cpu = Options(",device=1");
  on_cpu.flags.back() = "cpu";
  const ChildProcess::Result cpu = run(on_cpu);
  EXPECT_EQ(cpu.code, 3);
  EXPECT_HAS(cpu.err, "model b: there is no device 1 of backend 'cpu': it has device 0 only");
}

}  // namespace
}  // namespace mneme::test
