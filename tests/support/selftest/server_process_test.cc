#include "tests/support/server_process.h"

#include <signal.h>

#include <filesystem>
#include <fstream>

#include "absl/time/clock.h"
#include "gtest/gtest-spi.h"
#include "gtest/gtest.h"

namespace mneme::test {
namespace {

// A stand-in for mneme-server: says that it listens, then does as `script` says.
std::unique_ptr<ServerProcess> Start(const TemporaryFolder& folder, const std::string& script) {
  const std::filesystem::path binary = folder.path() / "server.sh";
  std::ofstream(binary) << "#!/bin/sh\necho listening on 127.0.0.1:1; sleep 0.3\n"
                        << script << "\n";
  std::filesystem::permissions(binary, std::filesystem::perms::owner_all);
  auto server = ServerProcess::Start({.binary = binary, .model = "", .folder = folder.path()});
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? *std::move(server) : nullptr;
}

void AwaitLog(const ServerProcess& server) {
  while (server.Log().empty()) absl::SleepFor(absl::Milliseconds(1));
  absl::SleepFor(absl::Milliseconds(200));  // it ends after it has written
}

TEST(ServerProcessTest, ACrashFailsTheTestThatKillsTheServer) {
  TemporaryFolder folder;
  EXPECT_NONFATAL_FAILURE(
      {
        auto server = Start(folder, "echo a report >&2; exit 66");
        AwaitLog(*server);
        server->Kill();
      },
      "ended with code 66, its log:\na report");
}

TEST(ServerProcessTest, ACrashFailsTheTestThatForgetsTheServer) {
  TemporaryFolder folder;
  EXPECT_NONFATAL_FAILURE(
      {
        auto server = Start(folder, "echo a report >&2; kill -SEGV $$");
        AwaitLog(*server);
      },
      "ended with code 139");
}

TEST(ServerProcessTest, ASanitizerReportUnderWayFailsTheTest) {
  TemporaryFolder folder;
  EXPECT_NONFATAL_FAILURE(
      {
        auto server =
            Start(folder, "echo 'WARNING: ThreadSanitizer: data race' >&2; exec sleep 100");
        AwaitLog(*server);
        server->Kill();
      },
      "data race");
}

TEST(ServerProcessTest, KillingAndWaitingAreNoFailure) {
  TemporaryFolder folder;
  Start(folder, "exec sleep 100")->Kill();
  Start(folder, "exec sleep 100");  // killed by the destructor
  auto server = Start(folder, "exit 7");
  EXPECT_EQ(server->Wait().code, 7);
}

}  // namespace
}  // namespace mneme::test
