// A new version is rolled out under load: three servers of one PostgreSQL database are stopped and
// started again, one after the other, as an orchestrator does. Users of the C++ client must not
// notice: no call fails, and every text is what an undisturbed session says to the same words.
//
//   e2e_rolling_restart_test --rounds 20
#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/e2e/postgres_test_base.h"
#include "tests/support/free_address.h"
#include "tests/support/haproxy.h"
#include "tests/support/http_get.h"
#include "tests/support/wait_for.h"

namespace mneme::test {
namespace {

constexpr int kUsers = 4;
// Longer than a drain waits, so that some turns have to move.
constexpr int kLongTurn = 3000;
int rounds = 1;

// One conversation: what a user does next depends on nothing but how much was done, so that it can
// be had again.
class Conversation {
 public:
  Conversation(client::Client client, std::string session, int user)
      : client_(std::move(client)), session_(std::move(session)), user_(user) {}

  // What came of step `n`, to be compared; "" and a failure if it failed.
  std::string Step(int n) {
    const int kind = (n + user_) % 4;
    if (kind == 3) return Ingest(n);
    v1::GenerateRequest request;
    request.set_session(session_);
    request.set_text(absl::StrCat("user ", user_, " says ", n));
    request.set_max_output_tokens(kind == 0 ? kLongTurn : 20);
    request.set_ignore_eos(true);
    request.mutable_sampling()->set_seed(n);
    auto stream = client_.Generate(request);
    if (!stream.ok()) return Failed(n, stream.status());
    std::string text;
    for (const v1::GenerateResponse& event : *stream) text += event.delta().text();
    const auto final = stream->Finish();
    if (!final.ok()) return Failed(n, final.status());
    resumed_ += stream->resumed();
    EXPECT_TRUE(final->committed());
    EXPECT_EQ(final->finish_reason(), v1::MAX_TOKENS);
    return absl::StrCat(final->position_tokens(), " ", text);
  }
  int resumed() const { return resumed_; }

 private:
  std::string Ingest(int n) {
    std::string words;
    for (int i = 0; i < 2000; ++i) absl::StrAppend(&words, "word ", n * i, " ");
    std::istringstream text(words);
    const auto read = client_.Ingest(text, {.session = session_});
    if (!read.ok()) return Failed(n, read.status());
    EXPECT_EQ(read->durable_bytes(), static_cast<int64_t>(words.size()));
    // Not its version: a server that drains commits what it has read by then.
    const auto session = client_.GetSession(session_);
    if (!session.ok()) return Failed(n, session.status());
    return absl::StrCat(session->position_tokens(), " tokens read");
  }
  std::string Failed(int n, const absl::Status& status) {
    ADD_FAILURE() << session_ << ", step " << n << ": " << status;
    return "";
  }

  client::Client client_;
  const std::string session_;
  const int user_;
  int resumed_ = 0;
};

class RollingRestartTest : public PostgresTestBase {
 protected:
  struct Replica {
    TemporaryFolder folder;
    ServerProcess::Options options;
    std::unique_ptr<ServerProcess> server;
  };

  void StartAll(const std::string& pre_stop_delay) {
    const std::string uri = database_.NewDatabase();
    for (size_t i = 0; i < replicas_.size(); ++i) {
      Replica& replica = replicas_[i];
      replica.options = Options(uri);
      replica.options.folder = replica.folder.path();
      replica.options.address = replica.options.metrics_address = OwnLoopback() + ":0";
      replica.options.flags = {"--replica.name", absl::StrCat("replica-", i), "--drain.timeout",
                               "500ms",          "--drain.pre_stop_delay",    pre_stop_delay};
      replica.server = ServerTestBase::Start(replica.options);
      ASSERT_NE(replica.server, nullptr);
      replica.options.address = replica.server->address();
      replica.options.metrics_address = replica.server->metrics_address();
    }
  }

  // Restarts them all, `rounds` times, while users of `target` go on.
  void RollUnderLoad(client::Options target) {
    std::array<std::vector<std::string>, kUsers> said;
    std::array<int, kUsers> resumed{};
    std::atomic<bool> stop = false;
    std::vector<std::thread> users;
    for (int user = 0; user < kUsers; ++user) {
      auto client = client::Client::Connect(target);
      ASSERT_TRUE(client.ok()) << client.status();
      const std::string session = absl::StrCat("load-", user);
      Create(*client, session);
      users.emplace_back([&, user, session, client = *client] {
        Conversation conversation(client, session, user);
        while (!stop && !HasFailure()) {
          said[user].push_back(conversation.Step(static_cast<int>(said[user].size())));
        }
        resumed[user] = conversation.resumed();
      });
    }
    for (int i = 0; i < rounds * static_cast<int>(replicas_.size()) && !HasFailure(); ++i) {
      Replica& replica = replicas_[i % replicas_.size()];
      absl::SleepFor(absl::Milliseconds(300));
      replica.server->Signal(SIGTERM);
      EXPECT_EQ(replica.server->Wait().code, 0) << replica.server->Log();
      replica.server = ServerTestBase::Start(replica.options);
      if (replica.server == nullptr) break;
      EXPECT_TRUE(
          WaitFor([&] { return HttpGet(replica.options.metrics_address, "/readyz").code == 200; }));
    }
    absl::SleepFor(absl::Milliseconds(300));
    stop = true;
    for (std::thread& user : users) user.join();
    if (HasFailure()) return;

    size_t steps = 0;
    int moved = 0;
    client::Client calm = Connect(*replicas_[0].server);
    for (int user = 0; user < kUsers; ++user) {
      const std::string session = absl::StrCat("calm-", user);
      Create(calm, session);
      Conversation conversation(calm, session, user);
      for (size_t n = 0; n < said[user].size(); ++n) {
        ASSERT_EQ(said[user][n], conversation.Step(static_cast<int>(n)))
            << "user " << user << ", step " << n;
      }
      steps += said[user].size();
      moved += resumed[user];
    }
    EXPECT_GE(steps, size_t{kUsers});
    const std::string figure = absl::StrCat(steps, " calls of ", kUsers, " users, 0 failed, ",
                                            moved, " streams moved to another server");
    std::printf("%d restarts: %s\n", rounds * static_cast<int>(replicas_.size()), figure.c_str());
    RecordProperty("trials", rounds * static_cast<int>(replicas_.size()));
    RecordProperty("figure", figure);
  }

  std::array<Replica, 3> replicas_;
};

// As behind a headless service: the client knows all addresses and whether they are healthy.
TEST_F(RollingRestartTest, AClientThatKnowsAllServersNoticesNothing) {
  ASSERT_NO_FATAL_FAILURE(StartAll("200ms"));
  std::string target = "ipv4:";
  for (const Replica& replica : replicas_) {
    absl::StrAppend(&target, target.back() == ':' ? "" : ",", replica.server->address());
  }
  RollUnderLoad({.server = target, .health_check = true});
}

// HAProxy asks each server once a second whether it is ready.
TEST_F(RollingRestartTest, AClientBehindHaproxyNoticesNothing) {
  ASSERT_NO_FATAL_FAILURE(StartAll("3s"));
  const std::string address = FreeAddress();
  auto haproxy = StartHaproxy(
      MNEME_SOURCE_DIR, address,
      {replicas_[0].server.get(), replicas_[1].server.get(), replicas_[2].server.get()},
      folder_.path());
  ASSERT_TRUE(haproxy.ok()) << haproxy.status();
  RollUnderLoad({.server = address, .connect_timeout = absl::Seconds(30)});
}

bool ParseArguments(int argc, char** argv) {
  if (argc == 1) return true;
  return argc == 3 && std::string(argv[1]) == "--rounds" && absl::SimpleAtoi(argv[2], &rounds) &&
         rounds > 0;
}

}  // namespace
}  // namespace mneme::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (!mneme::test::ParseArguments(argc, argv)) {
    std::fprintf(stderr, "usage: %s [--rounds N]\n", argv[0]);
    return 2;
  }
  return RUN_ALL_TESTS();
}
