// /metrics, /healthz and /readyz, and what a drain and a lost store make of them.
#include "server/rpc/http_listener.h"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "tests/server/rpc/rpc_test_base.h"
#include "tests/support/http_get.h"

namespace mneme::server {
namespace {

using test::HttpGet;
using testing::HasSubstr;

class HttpListenerTest : public RpcTest {
 protected:
  HttpListenerTest() {
    config_.listen.metrics_address = "127.0.0.1:0";
    config_.store.path = testing::TempDir();
  }

  test::HttpReply Get(const std::string& path, const std::string& method = "GET") {
    return HttpGet(server_->metrics_address(), path, method);
  }
  // Polls until /readyz answers with `code`.
  bool BecomesReady(int code) {
    for (int i = 0; i < 2000 && Get("/readyz").code != code; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return Get("/readyz").code == code;
  }
};

TEST_F(HttpListenerTest, Metrics) {
  StartServer();
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    v1::Session session;
    ASSERT_TRUE(sessions_->GetSession(&context, {}, &session).ok());
  }
  const test::HttpReply reply = Get("/metrics");
  EXPECT_EQ(reply.code, 200);
  EXPECT_THAT(reply.head, HasSubstr("text/plain; version=0.0.4"));
  EXPECT_THAT(reply.body, testing::ContainsRegex("mneme_rpc_server_duration_seconds_count"
                                                 "[{](code=\"OK\",method=\"GetSession\"|"
                                                 "method=\"GetSession\",code=\"OK\")[}] 3"));
  for (const char* family :
       {"mneme_drain_phase", "process_resident_memory_bytes", "mneme_store_disk_free_bytes"}) {
    EXPECT_THAT(reply.body, HasSubstr(std::string("\n") + family + " ")) << family;
  }
  EXPECT_EQ(Get("/").code, 404);
  EXPECT_EQ(Get("/secrets").code, 404);
}

TEST_F(HttpListenerTest, AMemoryStoreHasNoDisk) {
  config_.store.kind = "memory";
  StartServer();
  EXPECT_THAT(Get("/metrics").body, testing::Not(HasSubstr("mneme_store_disk")));
}

TEST_F(HttpListenerTest, ReadyUntilADrainBegins) {
  config_.drain = {.pre_stop_delay_ms = 60'000, .timeout_ms = 60'000};
  StartServer();
  EXPECT_EQ(Get("/healthz").code, 200);
  EXPECT_EQ(Get("/readyz").code, 200);
  EXPECT_EQ(Get("/readyz").body, "ready\n");
  EXPECT_EQ(Get("/readyz", "HEAD").code, 200);
  EXPECT_EQ(Get("/readyz", "HEAD").body, "");

  std::thread drain([&] { server_->Drain(RpcServer::DrainStart::kPreStop); });
  EXPECT_TRUE(BecomesReady(503));
  EXPECT_EQ(Get("/readyz").body, "draining\n");
  EXPECT_EQ(Get("/readyz", "HEAD").code, 503);
  EXPECT_EQ(Get("/healthz").code, 200);  // nobody should kill it for that
  EXPECT_EQ(Get("/metrics").code, 200);
  // Calls are still served: a balancer needs a moment to notice.
  grpc::ClientContext context;
  v1::Session session;
  EXPECT_TRUE(sessions_->GetSession(&context, {}, &session).ok());
  server_->HurryDrain();
  drain.join();
  EXPECT_EQ(Get("/readyz").code, 503);
}

TEST_F(HttpListenerTest, NotReadyWithoutADeviceAndNotAliveWithoutAny) {
  std::atomic<int> failed = 0;
  core_.models = {"models/a", "models/b"};
  core_.device_faults = [&] {
    std::vector<DeviceFault> faults;
    if (failed > 0) faults.push_back({"cuda:0", "cuda:0 fell", {"models/a"}});
    if (failed > 1) faults.push_back({"cuda:1", "cuda:1 fell", {"models/b"}});
    return faults;
  };
  StartServer();
  EXPECT_EQ(Get("/readyz").code, 200);
  failed = 1;
  EXPECT_EQ(Get("/readyz").code, 503);
  EXPECT_EQ(Get("/readyz").body, "cuda:0 fell\n");
  EXPECT_EQ(Get("/healthz").code, 200);  // it still serves the other model
  failed = 2;
  EXPECT_EQ(Get("/readyz").code, 503);
  EXPECT_EQ(Get("/healthz").code, 503);
  EXPECT_EQ(Get("/healthz").body, "cuda:0 fell\n");
}

TEST_F(HttpListenerTest, NotReadyWhileTheStoreIsLost) {
  std::atomic<bool> lost = false;
  core_.check_store = [&] { return lost ? absl::UnavailableError("unplugged") : absl::OkStatus(); };
  StartServer({.probe_interval = std::chrono::milliseconds(5),
               .store_lost_after = std::chrono::milliseconds(200)});
  EXPECT_EQ(Get("/readyz").code, 200);
  lost = true;
  EXPECT_TRUE(BecomesReady(503));
  EXPECT_EQ(Get("/readyz").body, "the store does not answer\n");
  EXPECT_EQ(Get("/healthz").code, 200);
  lost = false;
  EXPECT_TRUE(BecomesReady(200));
  server_.reset();
}

TEST_F(HttpListenerTest, ATakenPortIsAnError) {
  StartServer();
  config_.listen.metrics_address = server_->metrics_address();
  const auto second = RpcServer::Start(config_, core_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists) << second.status();
}

}  // namespace
}  // namespace mneme::server
