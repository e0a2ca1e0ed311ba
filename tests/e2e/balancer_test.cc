// The recipes deploy/haproxy.cfg and deploy/nginx.conf, run as they are but for addresses, in front
// of two servers: nothing is lost when one of them drains.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "client/client.h"
#include "tests/support/free_address.h"
#include "tests/support/haproxy.h"
#include "tests/support/http_get.h"
#include "tests/support/server_process.h"
#include "tests/support/wait_for.h"

namespace mneme::test {
namespace {

class BalancerTest : public ::testing::Test {
 protected:
  BalancerTest() : address_(FreeAddress()), probes_(FreeAddress()) {}

  void StartServers() {
    for (auto [server, name] : {std::pair{&a_, "a"}, {&b_, "b"}}) {
      const auto folder = folder_.path() / name;
      std::filesystem::create_directory(folder);
      auto started = ServerProcess::Start({.binary = MNEME_SERVER_BINARY,
                                           .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
                                           .folder = folder,
                                           .flags = {"--drain.pre_stop_delay", "60s"}});
      ASSERT_TRUE(started.ok()) << started.status();
      *server = *std::move(started);
    }
  }
  void StartHaproxy() {
    auto haproxy =
        test::StartHaproxy(MNEME_SOURCE_DIR, address_, {a_.get(), b_.get()}, folder_.path());
    ASSERT_TRUE(haproxy.ok()) << haproxy.status();
    balancer_ = *std::move(haproxy);
  }
  void StartNginx() {
    const std::string conf =
        absl::StrReplaceAll(ReadFile(MNEME_SOURCE_DIR "/deploy/nginx.conf"),
                            {{"10.0.0.11:7447", a_->address()},
                             {"10.0.0.12:7447", b_->address()},
                             {"10.0.0.11:7448", a_->metrics_address()},
                             {"10.0.0.12:7448", b_->metrics_address()},
                             {"listen 7447", absl::StrCat("listen ", address_)},
                             {"listen 7448", absl::StrCat("listen ", probes_)}});
    const std::filesystem::path folder = folder_.path();
    std::ofstream(folder / "mneme.conf") << conf;
    // What Debian's /etc/nginx/nginx.conf has around it, without its folders.
    std::ofstream main(folder / "nginx.conf");
    main << "pid nginx.pid; error_log stderr; daemon off; events {}\nhttp {\n  access_log off;\n";
    for (const char* part : {"client_body", "proxy", "fastcgi", "uwsgi", "scgi"}) {
      main << "  " << part << "_temp_path " << part << ";\n";
    }
    main << "  include mneme.conf;\n}\n";
    if (geteuid() == 0) main << "user root;\n";  // the folder is ours alone
    main.close();
    Run({"/usr/sbin/nginx", "-p", folder, "-c", "nginx.conf", "-e", "stderr"});
  }

  client::Client Connect() {
    auto client = client::Client::Connect({.server = address_,
                                           .connect_timeout = absl::Seconds(30),
                                           .work_timeout = absl::Seconds(120)});
    EXPECT_TRUE(client.ok()) << client.status() << balancer_->Out() << balancer_->Err();
    return *client;
  }
  static v1::GenerateRequest Request(int tokens) {
    v1::GenerateRequest request;
    request.set_text("The lighthouse");
    request.set_max_output_tokens(tokens);
    request.set_ignore_eos(true);
    return request;
  }
  static double Sample(const ServerProcess& server, const std::string& series) {
    return SampleIn(HttpGet(server.metrics_address(), "/metrics").body, series);
  }
  static double Finished(const ServerProcess& server) {
    return Sample(server, "mneme_requests_finished_total{finish_reason=\"MAX_TOKENS\"}");
  }
  // Of 20 calls none fails; how many went to a_.
  double CallsToA(client::Client& client) {
    const double before = Finished(*a_), before_b = Finished(*b_);
    for (int i = 0; i < 20; ++i) {
      auto turn = client.Complete(Request(2));
      EXPECT_TRUE(turn.ok()) << turn.status();
    }
    const double to_a = Finished(*a_) - before;
    // A longer stream of the test may end meanwhile.
    EXPECT_GE(to_a + Finished(*b_) - before_b, 20);
    return to_a;
  }

  std::unique_ptr<ServerProcess> a_, b_;
  std::unique_ptr<ChildProcess> balancer_;
  const std::string address_, probes_;

 private:
  void Run(std::vector<std::string> command) {
    ASSERT_TRUE(std::filesystem::exists(command[0]))
        << command[0] << " is missing: run deploy/install_packages.sh test";
    auto child = ChildProcess::Start(
        {.command = std::move(command), .folder = folder_.path(), .name = "balancer"});
    ASSERT_TRUE(child.ok()) << child.status();
    balancer_ = *std::move(child);
  }

  TemporaryFolder folder_;
};

TEST_F(BalancerTest, HaproxyTakesADrainingServerOutAndLosesNothing) {
  StartServers();
  StartHaproxy();
  auto client = Connect();
  const double to_a = CallsToA(client);
  EXPECT_GT(to_a, 5);
  EXPECT_LT(to_a, 15);

  // Streams on both; the one on a_ outlives the news of its drain.
  std::vector<client::GenerateStream> streams;
  v1::GenerateResponse event;
  while (Sample(*a_, "mneme_requests_running") < 1) {
    auto stream = client.Generate(Request(3000));
    ASSERT_TRUE(stream.ok()) << stream.status();
    ASSERT_TRUE(stream->Next(&event));
    streams.push_back(*std::move(stream));
    ASSERT_LT(streams.size(), 5u);
  }
  a_->Signal(SIGTERM);
  EXPECT_TRUE(WaitFor([&] { return HttpGet(a_->metrics_address(), "/readyz").code == 503; }));
  EXPECT_TRUE(WaitFor([&] { return CallsToA(client) == 0; })) << "HAProxy did not notice";
  for (client::GenerateStream& stream : streams) {
    while (stream.Next(&event)) {
    }
    ASSERT_TRUE(stream.final().has_value()) << stream.Finish().status();
    EXPECT_EQ(stream.final()->usage().output_tokens(), 3000);
  }
  a_->Signal(SIGTERM);  // the rest of pre_stop_delay
  EXPECT_EQ(a_->Wait().code, 0) << a_->Log();
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(client.Complete(Request(2)).ok());
}

TEST_F(BalancerTest, HaproxySpeaksOfUnavailableWhenNobodyIsReady) {
  StartServers();
  StartHaproxy();
  auto client = Connect();
  for (ServerProcess* server : {a_.get(), b_.get()}) server->Kill();
  EXPECT_TRUE(WaitFor([&] { return absl::IsUnavailable(client.Complete(Request(2)).status()); }));
}

TEST_F(BalancerTest, NginxPassesOverAServerThatIsGone) {
  StartServers();
  StartNginx();
  auto client = Connect();
  const double to_a = CallsToA(client);
  EXPECT_GT(to_a, 0);
  EXPECT_LT(to_a, 20);
  EXPECT_EQ(HttpGet(probes_, "/readyz").code, 200);

  // Beyond nginx's own limit it is the server that answers, with its reason.
  auto request = Request(1);
  request.set_text(std::string(3 << 20, 'x'));
  const absl::Status long_text = client.Complete(request).status();
  EXPECT_EQ(client::ErrorOf(long_text).reason, "INPUT_TOO_LONG") << long_text;

  a_->Signal(SIGTERM);
  EXPECT_TRUE(WaitFor([&] { return HttpGet(a_->metrics_address(), "/readyz").code == 503; }));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(HttpGet(probes_, "/readyz").code, 200);  // b_ is ready
  a_->Signal(SIGTERM);
  EXPECT_EQ(a_->Wait().code, 0) << a_->Log();
  for (int i = 0; i < 20; ++i) {
    auto turn = client.Complete(Request(2));
    EXPECT_TRUE(turn.ok()) << turn.status();
  }
  EXPECT_EQ(HttpGet(probes_, "/readyz").code, 200);
  b_->Signal(SIGTERM);
  EXPECT_TRUE(WaitFor([&] { return HttpGet(probes_, "/readyz").code >= 500; }));
}

// A stream on which both sides go on at the same time, longer than any buffer of the proxies.
TEST_F(BalancerTest, LongTextsAreIngestedThroughBoth) {
  StartServers();
  const std::string text(200'000, 'x');
  for (const bool haproxy : {true, false}) {
    haproxy ? StartHaproxy() : StartNginx();
    auto client = Connect();
    v1::CreateSessionRequest create;
    create.set_session_id(haproxy ? "through-haproxy" : "through-nginx");
    // Each server has sessions of its own: it must be where the affinity leads to.
    for (const ServerProcess* server : {a_.get(), b_.get()}) {
      auto direct = client::Client::Connect({.server = server->address()});
      ASSERT_TRUE(direct.ok()) << direct.status();
      ASSERT_TRUE(direct->CreateSession(create).ok());
    }
    std::istringstream file(text);
    auto ingest = client.Ingest(file, {.session = create.session_id()});
    ASSERT_TRUE(ingest.ok()) << ingest.status();
    EXPECT_EQ(ingest->durable_bytes(), static_cast<int64_t>(text.size()));
    // And every later call finds it there.
    for (int i = 0; i < 5; ++i) {
      auto session = client.GetSession(create.session_id());
      ASSERT_TRUE(session.ok()) << session.status();
      EXPECT_EQ(session->version(), ingest->version());
    }
    balancer_.reset();
  }
}

}  // namespace
}  // namespace mneme::test
