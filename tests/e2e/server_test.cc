// The life of a real mneme-server: start, exit codes, drain, metrics, damage on its disk.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/e2e/server_test_base.h"
#include "tests/support/http_get.h"

namespace mneme::test {
namespace {

class ServerTest : public ServerTestBase {
 protected:
  // A server that is expected to leave by itself.
  ChildProcess::Result RunServer(const ServerProcess::Options& options) {
    return ChildProcess::Run(
        {.command = ServerProcess::Command(options), .folder = folder_.path(), .name = "short"});
  }
};

TEST_F(ServerTest, ExitCodesTellWhatWasWrong) {
  auto flag = RunServer(Options({"--engine.thread", "2"}));
  EXPECT_EQ(flag.code, 2) << flag.err;
  EXPECT_NE(flag.err.find("engine.threads"), std::string::npos) << flag.err;  // the nearest key

  auto variable = ChildProcess::Run({.command = ServerProcess::Command(Options()),
                                     .environment = {{"MNEME_ENGINE_THREDS", "1"}},
                                     .folder = folder_.path(),
                                     .name = "variable"});
  EXPECT_EQ(variable.code, 2) << variable.err;
  EXPECT_NE(variable.err.find("MNEME_ENGINE_THREADS"), std::string::npos) << variable.err;

  auto simd = RunServer(Options({"--engine.simd_target", "avx9"}));
  EXPECT_EQ(simd.code, 2) << simd.err;
  EXPECT_NE(simd.err.find("scalar"), std::string::npos) << simd.err;  // a target that is there

  std::ofstream(folder_.path() / "bad.gguf") << "this is no checkpoint";
  auto options = Options();
  options.model = absl::StrCat("tiny=", (folder_.path() / "bad.gguf").string());
  auto model = RunServer(options);
  EXPECT_EQ(model.code, 3) << model.err;
  EXPECT_NE(model.err.find("bad.gguf"), std::string::npos) << model.err;

  auto server = Start(Options());
  ASSERT_NE(server, nullptr);
  auto store = RunServer(Options());  // the same folder
  EXPECT_EQ(store.code, 4) << store.err;

  options = Options({"--store.kind", "memory"});
  options.address = server->address();
  auto port = RunServer(options);
  EXPECT_EQ(port.code, 5) << port.err;
  options.address = "127.0.0.1:0";
  options.metrics_address = server->metrics_address();
  auto metrics_port = RunServer(options);
  EXPECT_EQ(metrics_port.code, 5) << metrics_port.err;
}

TEST_F(ServerTest, StartUpSaysWhatItServesAndWhereSessionsAre) {
  {
    auto server = Start(Options());
    ASSERT_NE(server, nullptr);
    auto client = Connect(*server);
    for (const char* id : {"a", "b", "c"}) Create(client, id);
    v1::DeleteSessionRequest request;
    request.set_name("b");
    ASSERT_TRUE(client.DeleteSession(request).ok());
    server->Signal(SIGTERM);
    ASSERT_EQ(server->Wait().code, 0);
  }
  auto server = Start(Options());
  ASSERT_NE(server, nullptr);
  const std::string out = server->Out();
  EXPECT_NE(out.find("\nthreads: 1, models: 1\n"), std::string::npos) << out;
  EXPECT_NE(out.find(absl::StrCat("\nsessions: 2, damaged: 0, deleted: 1, kept in ",
                                  (folder_.path() / "store").string(), "\n")),
            std::string::npos)
      << out;
}

// A program alone, as it is installed without the plugin for GPUs: nobody asked for one.
TEST_F(ServerTest, ABackendThatIsNotInstalledIsMissedOnlyByWhoAsksForIt) {
  const std::filesystem::path alone = folder_.path() / "mneme-server";
  std::filesystem::copy_file(MNEME_SERVER_BINARY, alone);
  auto options = Options();
  options.binary = alone;
  {
    auto server = Start(options);
    ASSERT_NE(server, nullptr);
    const std::string out = server->Out();
    EXPECT_NE(out.find("\nbackend: cpu (host, "), std::string::npos) << out;
    EXPECT_EQ(out.find("GPU"), std::string::npos) << out;
    EXPECT_EQ(out.find("cuda"), std::string::npos) << out;
  }
  options.flags.insert(options.flags.end(), {"--engine.backend", "cuda"});
  const auto asked = RunServer(options);
  EXPECT_EQ(asked.code, 3) << asked.err;
  EXPECT_NE(asked.err.find("backend 'cuda' is not installed: no libmneme_cuda.so beside"),
            std::string::npos)
      << asked.err;
}

// Without --store.path: the same place whatever directory it is started in, and an absolute path
// for a relative one.
TEST_F(ServerTest, TheDefaultPlaceIsTheUsers) {
  const std::string command =
      absl::StrCat("cd ", folder_.path().string(), " && exec ", MNEME_SERVER_BINARY,
                   " --model tiny=", MNEME_TINY_MODEL,
                   " --listen.address 127.0.0.1:0 --listen.metrics_address= ");
  const auto place = [&](const std::string& flags) {
    auto child = ChildProcess::Start(
        {.command = {"/bin/sh", "-c", command + flags},
         .environment = {{"HOME", folder_.path()}, {"XDG_STATE_HOME", folder_.path() / "state"}},
         .folder = folder_.path(),
         .name = "place"});
    EXPECT_TRUE(child.ok()) << child.status();
    const absl::Time deadline = absl::Now() + absl::Seconds(120);
    while ((*child)->Out().find("listening on") == std::string::npos && absl::Now() < deadline &&
           !(*child)->Ended()) {
      absl::SleepFor(absl::Milliseconds(5));
    }
    (*child)->Signal(SIGINT);
    const auto result = (*child)->Wait();
    EXPECT_EQ(result.code, 0) << result.err;
    const size_t at = result.out.find("kept in ");
    if (at == std::string::npos) return result.out;
    return result.out.substr(at + 8, result.out.find('\n', at) - at - 8);
  };
  EXPECT_EQ(place(""), folder_.path() / "state" / "mneme" / "store");
  EXPECT_TRUE(std::filesystem::exists(folder_.path() / "state" / "mneme" / "store" / "CURRENT"));
  EXPECT_EQ(place("--store.path data"), folder_.path() / "data");
  EXPECT_EQ(place("--store.kind memory"), "memory alone");
}

TEST_F(ServerTest, SimdTargetIsPinnedBeforeTheFirstKernel) {
  auto server = Start(Options({"--engine.simd_target", "scalar"}));
  ASSERT_NE(server, nullptr);
  auto model = Connect(*server).GetModel("models/tiny");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_NE(model->numerics_id().find("/cpu/scalar/"), std::string::npos) << model->numerics_id();
}

TEST_F(ServerTest, ADrainEndsARunningTurnWithFinalAndKeepsIt) {
  auto server = Start(Options({"--drain.timeout", "200ms"}));
  ASSERT_NE(server, nullptr);
  // Of a client that will not come back.
  auto made =
      client::Client::Connect({.server = server->address(), .resume_window = absl::ZeroDuration()});
  ASSERT_TRUE(made.ok()) << made.status();
  client::Client client = *std::move(made);
  Create(client, "s");
  auto stream = client.Generate(Request("s", "The lighthouse", 65536));
  ASSERT_TRUE(stream.ok());
  v1::GenerateResponse event;
  std::vector<int32_t> output;
  while (output.size() < 20 && stream->Next(&event)) {
    output.insert(output.end(), event.delta().token_ids().begin(), event.delta().token_ids().end());
  }
  server->Signal(SIGTERM);
  while (stream->Next(&event)) {
    output.insert(output.end(), event.delta().token_ids().begin(), event.delta().token_ids().end());
  }
  auto final = stream->final();
  ASSERT_TRUE(final.has_value()) << stream->Finish().status();
  EXPECT_EQ(final->finish_reason(), v1::PREEMPTED);
  EXPECT_TRUE(final->committed());
  EXPECT_EQ(final->usage().output_tokens(), static_cast<int64_t>(output.size()));
  EXPECT_EQ(server->Wait().code, 0) << server->Log();

  server = Start(Options());
  ASSERT_NE(server, nullptr);
  auto again = Connect(*server);
  auto session = again.GetSession("s");
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->version(), final->version());
  EXPECT_EQ(session->position_tokens(), final->position_tokens());
}

// DrainServer is SIGTERM by gRPC: the turn that runs ends by itself, then the server leaves.
TEST_F(ServerTest, ADrainByCallLetsTurnsEndAndLeaves) {
  auto server = Start(Options({"--drain.timeout", "60s"}));
  ASSERT_NE(server, nullptr);
  client::Client client = Connect(*server);
  Create(client, "s");
  auto stream = client.Generate(Request("s", "Once upon a time", 300));
  ASSERT_TRUE(stream.ok());
  v1::GenerateResponse event;
  ASSERT_TRUE(stream->Next(&event));
  EXPECT_EQ(client.GetLoads()->running_requests(), 1);
  EXPECT_EQ(client.GetServerInfo()->store(), "rocksdb");
  auto drained = client.DrainServer({});
  ASSERT_TRUE(drained.ok()) << drained.status();
  EXPECT_EQ(drained->drain_phase(), 0);
  auto final = stream->Finish();
  ASSERT_TRUE(final.ok()) << final.status();
  EXPECT_EQ(final->finish_reason(), v1::MAX_TOKENS);
  EXPECT_TRUE(final->committed());
  const ChildProcess::Result left = server->Wait();
  EXPECT_EQ(left.code, 0) << left.err;
}

TEST_F(ServerTest, ARestartChangesNoToken) {
  std::vector<int32_t> without, with;
  for (const bool restart : {false, true}) {
    const std::string id = restart ? "restarted" : "steady";
    auto server = Start(Options());
    ASSERT_NE(server, nullptr);
    auto client = Connect(*server);
    Create(client, id);
    ASSERT_TRUE(client.Complete(Request(id, "The visitor went to the light", 300)).ok());
    if (restart) {
      server->Signal(SIGTERM);
      ASSERT_EQ(server->Wait().code, 0);
      server = Start(Options());
      ASSERT_NE(server, nullptr);
      client = Connect(*server);
    }
    auto turn = client.Complete(Request(id, " and then", 300));
    ASSERT_TRUE(turn.ok()) << turn.status();
    EXPECT_EQ(turn->final().usage().recomputed_tokens(), 0);
    (restart ? with : without).assign(turn->token_ids().begin(), turn->token_ids().end());
  }
  EXPECT_EQ(with.size(), 300u);
  EXPECT_EQ(with, without);
}

TEST_F(ServerTest, PromtoolLikesTheMetrics) {
  ASSERT_EQ(system("command -v promtool >/dev/null"), 0)
      << "promtool is missing: deploy/install_packages.sh test";
  auto server = Start(Options());
  ASSERT_NE(server, nullptr);
  auto client = Connect(*server);
  Create(client, "s");
  ASSERT_TRUE(client.Complete(Request("s", "The", 20)).ok());
  ASSERT_TRUE(client.Complete(Request("", "The", 5)).ok());
  EXPECT_FALSE(client.GetSession("nobody").ok());
  const std::string metrics = HttpGet(server->metrics_address(), "/metrics").body;
  EXPECT_EQ(SampleIn(metrics, "mneme_output_tokens_total{model=\"tiny\"}"), 25) << metrics;
  EXPECT_GT(SampleIn(metrics, "process_resident_memory_bytes"), 1e6) << metrics;
  EXPECT_GT(SampleIn(metrics, "mneme_store_size_bytes"), 0) << metrics;
  EXPECT_GT(SampleIn(metrics, "mneme_store_disk_free_bytes"), 0) << metrics;
  auto lint = ChildProcess::Run({.command = {"/bin/sh", "-c", "promtool check metrics"},
                                 .input = metrics,
                                 .folder = folder_.path(),
                                 .name = "promtool"});
  EXPECT_EQ(lint.code, 0) << lint.out << lint.err;
}

// Flips a byte in every stored file in turn that holds session data, and looks at what is said.
TEST_F(ServerTest, DamageOnDiskIsReportedAndNeverRead) {
  {
    auto server = Start(Options());
    ASSERT_NE(server, nullptr);
    auto client = Connect(*server);
    for (const char* id : {"a", "b"}) {
      Create(client, id);
      ASSERT_TRUE(client.Complete(Request(id, absl::StrCat(id, " lighthouse"), 100)).ok());
    }
    server->Signal(SIGTERM);
    ASSERT_EQ(server->Wait().code, 0);
  }
  const std::filesystem::path store = folder_.path() / "store", good = folder_.path() / "good";
  std::filesystem::copy(store, good, std::filesystem::copy_options::recursive);
  const auto ask = [&](bool* started) {
    std::map<std::string, absl::StatusOr<std::vector<int32_t>>> answers;
    auto server = ServerProcess::Start(Options());
    *started = server.ok();
    if (!server.ok()) {
      EXPECT_NE(server.status().message().find("exit code 4"), std::string::npos)
          << server.status();
      return answers;
    }
    auto client = Connect(**server);
    for (const char* id : {"a", "b"}) {
      auto turn = client.Complete(Request(id, " and", 20));
      if (turn.ok()) {
        answers[id] = std::vector<int32_t>(turn->token_ids().begin(), turn->token_ids().end());
      } else {
        answers[id] = turn.status();
      }
    }
    (*server)->Kill();
    return answers;
  };
  bool started = false;
  const auto expected = ask(&started);
  ASSERT_TRUE(started);
  int noticed = 0, tried = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(good)) {
    const std::string extension = entry.path().extension();
    if (!entry.is_regular_file() || entry.file_size() < 1000 ||
        (extension != ".sst" && extension != ".blob" && extension != ".log")) {
      continue;
    }
    ++tried;
    SCOPED_TRACE(entry.path().filename());
    std::filesystem::remove_all(store);
    std::filesystem::copy(good, store, std::filesystem::copy_options::recursive);
    {
      std::fstream file(store / std::filesystem::relative(entry.path(), good),
                        std::ios::in | std::ios::out | std::ios::binary);
      const auto middle = static_cast<std::streamoff>(entry.file_size() / 2);
      file.seekg(middle);
      const int byte = file.get();
      file.seekp(middle);
      file.put(static_cast<char>(byte ^ 0x20));
    }
    const auto answers = ask(&started);
    if (!started) {
      ++noticed;
      continue;
    }
    for (const auto& [id, answer] : answers) {
      if (answer.ok()) {
        EXPECT_EQ(*answer, *expected.at(id)) << "wrong bytes were used";
      } else {
        ++noticed;
        EXPECT_TRUE(answer.status().code() == absl::StatusCode::kDataLoss ||
                    client::ErrorOf(answer.status()).reason == "SESSION_DAMAGED")
            << answer.status();
      }
    }
  }
  EXPECT_GT(tried, 0);
  EXPECT_GT(noticed, 0);
}

}  // namespace
}  // namespace mneme::test
