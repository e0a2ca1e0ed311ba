// A GPU fails under a server: turns end with BACKEND_FAILED, later ones are refused at once,
// sessions stay as they were committed, and memory that ran out is nothing but a refusal. One
// process has each emulated GPU once: tests go on with a server on the processors.
#include <string>
#include <thread>

#include "engine/kernels/kernels.h"
#include "tests/server/core/core_test_base.h"
#include "tests/support/child_process.h"
#include "tests/support/emulated_gpus.h"

namespace mneme::server {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class CoreDeviceFaultTest : public CoreTest {
 protected:
  static void SetUpTestSuite() {
    folder_ = new test::TemporaryFolder;
    gpus_ = new test::EmulatedGpus(/*count=*/2, folder_->path());
    ASSERT_TRUE(engine::OpenBackend(MNEME_CUDA_EMU_PLUGIN).ok());
  }
  static void TearDownTestSuite() {
    delete gpus_;
    delete folder_;
  }

  void StartOn(const std::string& backend) {
    config.engine.backend = backend;
    Start();
  }
  std::string Refusal(const v1::GenerateRequest& request, absl::StatusCode code,
                      const std::string& reason, CollectingSink* sink = nullptr) {
    CollectingSink own;
    const absl::Status status = Generate(request, sink != nullptr ? *sink : own);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_EQ(ReasonOf(status), reason) << status;
    return std::string(status.message());
  }

  static test::TemporaryFolder* folder_;
  static test::EmulatedGpus* gpus_;
};
test::TemporaryFolder* CoreDeviceFaultTest::folder_ = nullptr;
test::EmulatedGpus* CoreDeviceFaultTest::gpus_ = nullptr;

// First: the next test loses the device.
TEST_F(CoreDeviceFaultTest, AMemoryThatRanOutRefusesTheTurnAndNothingElse) {
  config.engine.overflow = "error";  // states grow
  ASSERT_NO_FATAL_FAILURE(StartOn("cuda-emu"));
  Create("s");
  const CollectingSink first = Say("s", "The keeper", 4);
  const int64_t version = Get("s").version();

  // While a turn grows.
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse& event) {
    if (event.has_started()) gpus_->Order("malloc 2 0");
    return true;
  };
  const std::string message =
      Refusal(Request("s", "", 150), absl::StatusCode::kUnavailable, reason::kOverloaded, &sink);
  ASSERT_TRUE(gpus_->Taken());
  EXPECT_THAT(message, HasSubstr("the session is unchanged"));
  // At admission: another session's first state.
  Create("t");
  gpus_->Order("malloc 1 0");
  Refusal(Request("t", "x", 4), absl::StatusCode::kUnavailable, reason::kOverloaded);
  ASSERT_TRUE(gpus_->Taken());

  EXPECT_THAT(core->DeviceFaults(), IsEmpty());
  EXPECT_EQ(Get("s").version(), version);
  Say("t", "x", 4);
  const CollectingSink whole = Say("", "The keeper", 8), rest = Say("s", "", 4);
  EXPECT_TRUE(std::equal(rest.tokens.begin(), rest.tokens.end(), whole.tokens.begin() + 4,
                         whole.tokens.end()));
}

TEST_F(CoreDeviceFaultTest, AFaultEndsTurnsRefusesLaterOnesAndLosesNoSession) {
  ASSERT_NO_FATAL_FAILURE(StartOn("cuda-emu"));
  Create("s");
  Create("idle");
  Say("s", "The keeper", 4);
  Say("idle", "of the lighthouse", 4);
  const v1::Session before = Get("s"), idle = Get("idle");

  // One turn that speaks, one that waits for a slot behind it.
  config.limits.max_running_streams = 1;
  ASSERT_NO_FATAL_FAILURE(StartOn("cuda-emu"));
  std::thread waiting;
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse& event) {
    if (event.has_started()) {
      waiting = std::thread([&] {
        const std::string message = Refusal(Request("idle", "who waits", 4),
                                            absl::StatusCode::kInternal, reason::kBackendFailed);
        EXPECT_THAT(message, HasSubstr("cuda-emu:0"));
      });
      while (Gauge("mneme_requests_waiting") != 1) std::this_thread::yield();
    }
    if (event.has_delta() && sink.tokens.size() >= 3 && sink.tokens.size() < 6) {
      gpus_->Order("launch 20 0");
    }
    return true;
  };
  const std::string message = Refusal(Request("s", " wrote", 500), absl::StatusCode::kInternal,
                                      reason::kBackendFailed, &sink);
  waiting.join();
  EXPECT_THAT(message, AllOf(HasSubstr("cuda-emu:0 (emulated on the host)"),
                             HasSubstr("cudaErrorIllegalAddress"), HasSubstr("restarted")));
  EXPECT_GE(sink.tokens.size(), 3u);
  EXPECT_LT(sink.tokens.size(), 500u);
  EXPECT_FALSE(sink.has_final);

  // Refused before anything is tried, with the same words.
  CollectingSink refused;
  EXPECT_EQ(Refusal(Request("s", "more", 4), absl::StatusCode::kInternal, reason::kBackendFailed,
                    &refused),
            message);
  EXPECT_EQ(refused.count, 0);
  EXPECT_EQ(Refusal(Request("", "more", 4), absl::StatusCode::kInternal, reason::kBackendFailed),
            message);
  {
    CallContext context;
    v1::RewindSessionRequest rewind;
    rewind.set_name(Name("s"));
    rewind.set_position_tokens(2);
    EXPECT_EQ(ReasonOf(core->RewindSession(context, rewind).status()), reason::kBackendFailed);
    v1::IngestRequest::Start start;
    start.set_session(Name("s"));
    start.set_ingest_id("i");
    EXPECT_EQ(ReasonOf(core->StartIngest(context, start).status()), reason::kBackendFailed);
  }
  const std::vector<DeviceFault> faults = core->DeviceFaults();
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(faults[0].device, "cuda-emu:0");
  EXPECT_EQ(faults[0].message, message);
  EXPECT_THAT(faults[0].models, ElementsAre("models/tiny"));

  // What needs no device goes on: sessions are read, forked, and rewound to a kept point.
  EXPECT_EQ(Get("s").version(), before.version());
  EXPECT_EQ(Get("idle").version(), idle.version());
  {
    CallContext context;
    v1::ForkSessionRequest fork;
    fork.set_name(Name("s"));
    fork.add_session_ids("child");
    EXPECT_TRUE(core->ForkSession(context, fork).ok());
  }

  ASSERT_NO_FATAL_FAILURE(StartOn("cpu"));
  EXPECT_THAT(core->DeviceFaults(), IsEmpty());
  EXPECT_EQ(Get("s").version(), before.version());
  EXPECT_EQ(Get("s").position_tokens(), before.position_tokens());
  EXPECT_FALSE(Say("s", " wrote", 4).tokens.empty());
  EXPECT_EQ(Get("s").version(), before.version() + 1);
  EXPECT_FALSE(Say("idle", " wrote", 4).tokens.empty());
  EXPECT_FALSE(Say("child", " wrote", 4).tokens.empty());
}

// Of servers that share a store, one that cannot compute any more keeps no session from the others:
// each call that its device ends gives the session's lease back, long before it would end by
// itself.
TEST_F(CoreDeviceFaultTest, AFaultGivesTheLeaseBack) {
  store->shared = true;
  config.replica.lease_ttl_ms = 3'600'000;
  config.replica.lease_renew_ms = 1'000'000;
  config.replica.name = "other";
  config.engine.backend = "cpu";
  auto made = ServerCore::Create(config, std::make_unique<TestStore>(store));
  ASSERT_TRUE(made.ok()) << made.status();
  const std::unique_ptr<ServerCore> other = *std::move(made);
  config.replica.name = "lost";
  config.models[0].devices = {1};  // the test before has lost the first
  ASSERT_NO_FATAL_FAILURE(StartOn("cuda-emu"));
  Create("s");
  Say("s", "The keeper", 4);
  int64_t version = Get("s").version();
  // Refused while this server had the lease.
  const auto other_goes_on = [&](const char* after) {
    CallContext context;
    CollectingSink sink;
    const absl::Status status = other->Generate(context, Request("s", " wrote", 4), sink);
    EXPECT_TRUE(status.ok()) << after << ": " << status;
    EXPECT_EQ(sink.final.version(), ++version) << after;
  };

  // An ingest under way, which hears of it with its next text.
  Create("t");
  CallContext reading;
  v1::IngestRequest::Start start;
  start.set_session(Name("t"));
  start.set_ingest_id("i");
  auto ingest = core->StartIngest(reading, start);
  ASSERT_TRUE(ingest.ok()) << ingest.status();

  // In the middle of a turn, with the state's bytes on the device.
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse& event) {
    if (event.has_started()) gpus_->Order("launch 40 1");
    return true;
  };
  Refusal(Request("s", " of", 500), absl::StatusCode::kInternal, reason::kBackendFailed, &sink);
  ASSERT_TRUE(gpus_->Taken());
  other_goes_on("a turn");
  // At once, of a device that is lost already.
  Refusal(Request("s", "more", 4), absl::StatusCode::kInternal, reason::kBackendFailed);
  other_goes_on("a turn that was refused");
  CallContext context;
  v1::RewindSessionRequest rewind;
  rewind.set_name(Name("s"));
  rewind.set_position_tokens(2);
  EXPECT_EQ(ReasonOf(core->RewindSession(context, rewind).status()), reason::kBackendFailed);
  other_goes_on("a rewind");
  start.set_session(Name("s"));
  EXPECT_EQ(ReasonOf(core->StartIngest(context, start).status()), reason::kBackendFailed);
  other_goes_on("an ingest that was refused");
  v1::IngestRequest::Data data;
  data.set_data("some text");
  data.set_last(true);
  EXPECT_EQ(ReasonOf((*ingest)->Write(data)), reason::kBackendFailed);
  CollectingSink of_t;
  EXPECT_TRUE(other->Generate(context, Request("t", "x", 4), of_t).ok());
  EXPECT_EQ(Gauge("mneme_leases_held"), 0);
}

}  // namespace
}  // namespace mneme::server
