// Every family of /metrics moves when what it counts happens: each sample is compared before and
// after over a real channel. At the end the families that moved are compared with those that exist.
#include <unistd.h>

#include <functional>
#include <set>

#include "tests/server/rpc/served_core.h"
#include "tests/support/wait_for.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;
using test::WaitFor;

std::set<std::string>& Moved() {
  static auto& moved = *new std::set<std::string>;
  return moved;
}
std::set<std::string>& Known() {
  static auto& known = *new std::set<std::string>;
  return known;
}

class AllFamilies : public ::testing::Environment {
 public:
  void TearDown() override {
    if (::testing::GTEST_FLAG(filter) != "*") return;
    EXPECT_GT(Known().size(), 30u);
    for (const std::string& family : Known()) {
      if (family == "mneme_orphan_sequences") continue;  // must be 0, always
      EXPECT_TRUE(Moved().contains(family)) << family << " never moved";
    }
  }
};
const auto* const kAllFamilies = ::testing::AddGlobalTestEnvironment(new AllFamilies);

class MetricFamiliesTest : public ServedCoreTest {
 protected:
  using Labels = std::map<std::string, std::string>;

  // Of the sample with all of `labels`: the value, or a histogram's count; 0 if there is none yet.
  double Value(const std::string& name, const Labels& labels = {}) {
    for (const auto& family : core->metrics().registry()->Collect()) {
      Known().insert(family.name);
      if (family.name != name) continue;
      for (const auto& metric : family.metric) {
        Labels found;
        for (const auto& label : metric.label) found[label.name] = label.value;
        const bool all = std::all_of(labels.begin(), labels.end(), [&](const auto& wanted) {
          return found.contains(wanted.first) && found[wanted.first] == wanted.second;
        });
        if (!all) continue;
        switch (family.type) {
          case prometheus::MetricType::Counter:
            return metric.counter.value;
          case prometheus::MetricType::Gauge:
            return metric.gauge.value;
          default:
            EXPECT_GE(metric.histogram.sample_sum, 0) << name;
            return static_cast<double>(metric.histogram.sample_count);
        }
      }
    }
    return 0;
  }
  struct Expected {
    std::string name;
    Labels labels;
    double by;  // 0: by any amount above 0
  };
  // `action` moves these; the others are not looked at.
  void ExpectMoves(const std::vector<Expected>& expected, const std::function<void()>& action) {
    std::vector<double> before;
    for (const Expected& e : expected) before.push_back(Value(e.name, e.labels));
    action();
    for (size_t i = 0; i < expected.size(); ++i) {
      const Expected& e = expected[i];
      SCOPED_TRACE(e.name + ::testing::PrintToString(e.labels));
      const double by = Value(e.name, e.labels) - before[i];
      if (e.by == 0) {
        EXPECT_GT(by, 0);
      } else {
        EXPECT_EQ(by, e.by);
      }
      if (by != 0) Moved().insert(e.name);
    }
    EXPECT_EQ(Value("mneme_orphan_sequences"), 0);
  }
  void ExpectIs(double value, const std::string& name, const Labels& labels = {}) {
    EXPECT_EQ(Value(name, labels), value) << name << ::testing::PrintToString(labels);
    if (value != 0) Moved().insert(name);
  }
};

TEST_F(MetricFamiliesTest, LeasesOfASharedStore) {
  store->shared = true;
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  ExpectMoves({{"mneme_lease_events_total", {{"event", "taken"}}, 1},
               {"mneme_lease_events_total", {{"event", "released"}}, 1}},
              [&] {
                grpc::ClientContext context;
                auto stream = generation_->Generate(&context, Request("s", "The", 4000));
                v1::GenerateResponse event;
                while (stream->Read(&event)) {
                  if (event.has_started()) ExpectIs(1, "mneme_leases_held");
                }
                EXPECT_TRUE(stream->Finish().ok());
              });
  ExpectIs(0, "mneme_leases_held");
}

TEST_F(MetricFamiliesTest, ATurn) {
  Serve();
  ExpectIs(1, "mneme_build_info");
  ExpectIs(1, "mneme_model_info", {{"model", "tiny"}, {"backend", "cpu"}});
  ExpectMoves(
      {{"mneme_sessions", {{"tier", "store"}, {"state", "active"}}, 1},
       {"mneme_rpc_server_duration_seconds", {{"method", "CreateSession"}, {"code", "OK"}}, 1}},
      [&] { ASSERT_TRUE(CreateOverRpc("s").ok()); });
  ExpectMoves({{"mneme_input_tokens_total", {{"model", "tiny"}}, 3},
               {"mneme_output_tokens_total", {{"model", "tiny"}}, 5},
               {"mneme_requests_finished_total", {{"finish_reason", "MAX_TOKENS"}}, 1},
               {"mneme_time_to_first_token_seconds", {{"model", "tiny"}, {"kind", "cold"}}, 1},
               {"mneme_inter_token_latency_seconds", {{"model", "tiny"}}, 4},
               {"mneme_request_time_per_output_token_seconds", {{"model", "tiny"}}, 1},
               {"mneme_request_duration_seconds", {{"model", "tiny"}}, 1},
               {"mneme_request_queue_seconds", {{"model", "tiny"}}, 1},
               {"mneme_request_prefill_seconds", {{"model", "tiny"}}, 1},
               {"mneme_request_decode_seconds", {{"model", "tiny"}}, 1},
               {"mneme_state_save_seconds", {{"tier", "store"}}, 1},
               {"mneme_commit_seconds", {{"model", "tiny"}}, 1},
               {"mneme_batch_size", {{"model", "tiny"}}, 6},
               {"mneme_state_bytes", {{"tier", "host"}}, 0},
               {"mneme_sessions", {{"tier", "host"}, {"state", "active"}}, 1},
               {"mneme_rpc_server_duration_seconds", {{"method", "Complete"}, {"code", "OK"}}, 1}},
              [&] {
                auto request = Request("s", "", 5);
                for (int id : {5, 6, 7}) request.mutable_token_ids()->add_ids(id);
                ASSERT_TRUE(Turn(request).ok());
              });
  ExpectMoves({{"mneme_reused_input_tokens_total", {{"model", "tiny"}}, 8},
               {"mneme_time_to_first_token_seconds", {{"model", "tiny"}, {"kind", "warm"}}, 1},
               {"mneme_state_restore_seconds", {{"tier", "host"}}, 1}},
              [&] { ASSERT_TRUE(Turn(Request("s", "", 2)).ok()); });
  ExpectMoves({{"mneme_time_to_first_token_seconds", {{"model", "tiny"}, {"kind", "stateless"}}, 1},
               {"mneme_prefix_state_bytes", {{"tier", "host"}}, 0}},
              [&] { ASSERT_TRUE(Turn(Request("", std::string(100, 'x'), 2)).ok()); });
  ExpectMoves({{"mneme_recomputed_tokens_total", {{"model", "tiny"}}, 1}}, [&] {
    v1::RewindSessionRequest rewind;
    rewind.set_name(Name("s"));
    rewind.set_position_tokens(9);
    ASSERT_TRUE(Call(*sessions_, &v1::Sessions::Stub::RewindSession, rewind).ok());
  });
  Serve();  // now the state is only in the store
  ExpectIs(1, "mneme_sessions", {{"tier", "store"}, {"state", "active"}});
  ExpectMoves({{"mneme_state_restore_seconds", {{"tier", "store"}}, 1},
               {"mneme_time_to_first_token_seconds", {{"model", "tiny"}, {"kind", "cold"}}, 1}},
              [&] { ASSERT_TRUE(Turn(Request("s", "", 2)).ok()); });
}

TEST_F(MetricFamiliesTest, StoredSessionsAreCountedThroughTheirLives) {
  config.sessions.undelete_window_ms = 100;
  Serve();
  const auto expect = [&](double active, double deleted) {
    ExpectIs(active, "mneme_sessions", {{"tier", "store"}, {"state", "active"}});
    ExpectIs(deleted, "mneme_sessions", {{"tier", "store"}, {"state", "deleted"}});
  };
  for (const char* id : {"a", "b", "c"}) ASSERT_TRUE(CreateOverRpc(id).ok());
  EXPECT_FALSE(CreateOverRpc("a").ok());
  v1::ForkSessionRequest fork;
  fork.set_name(Name("a"));
  fork.set_count(4);
  ASSERT_TRUE(Call(*sessions_, &v1::Sessions::Stub::ForkSession, fork).ok());
  expect(7, 0);
  Create("brief", [](v1::Session& session) { session.mutable_ttl()->set_seconds(1); });
  expect(8, 0);
  // Expires, is swept as deleted, and then purged.
  EXPECT_TRUE(WaitFor([&] {
    return Value("mneme_sessions", {{"tier", "store"}, {"state", "active"}}) == 7 &&
           Value("mneme_sessions", {{"tier", "store"}, {"state", "deleted"}}) == 0;
  }));
  config.sessions.undelete_window_ms = 3600 * 1000;
  Serve();  // counted anew
  expect(7, 0);
  ASSERT_TRUE(Delete("b").ok());
  ASSERT_TRUE(Delete("c").ok());
  expect(5, 2);
  CallContext context;
  v1::UndeleteSessionRequest undelete;
  undelete.set_name(Name("c"));
  ASSERT_TRUE(core->UndeleteSession(context, undelete).ok());
  expect(6, 1);
  Serve();
  expect(6, 1);
}

TEST_F(MetricFamiliesTest, WaitingAndRunning) {
  config.limits.max_running_streams = 1;
  config.limits.max_queued_requests = 1;
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  auto running = Run(Endless("s"));
  ExpectIs(1, "mneme_requests_running");
  ExpectIs(1, "mneme_sessions", {{"tier", "host"}, {"state", "running"}});
  EXPECT_GT(Value("mneme_state_slots_used_ratio", {{"tier", "host"}}), 0);
  Moved().insert("mneme_state_slots_used_ratio");
  auto waiting_request = Request("", "", 1);
  for (int i = 0; i < 7; ++i) waiting_request.mutable_token_ids()->add_ids(5);
  std::thread waiting([&] { EXPECT_TRUE(Turn(waiting_request).ok()); });
  EXPECT_TRUE(WaitFor([&] { return Value("mneme_requests_waiting") == 1; }));
  ExpectIs(1, "mneme_requests_waiting");
  ExpectIs(7, "mneme_queued_tokens");
  ExpectMoves(
      {{"mneme_admission_rejected_total", {{"reason", "QUEUE_FULL"}}, 1},
       {"mneme_requests_failed_total", {{"code", "UNAVAILABLE"}, {"reason", "QUEUE_FULL"}}, 1}},
      [&] { EXPECT_FALSE(Turn(Request("", "x", 1)).ok()); });
  EXPECT_TRUE(running->Cancel(*generation_).ok());
  waiting.join();
  for (const char* idle : {"mneme_requests_running", "mneme_requests_waiting",
                           "mneme_queued_tokens", "mneme_state_slots_used_ratio"}) {
    ExpectIs(0, idle);
  }
}

TEST_F(MetricFamiliesTest, CancellationIsCountedByItsCauseAndTimed) {
  config.limits.slow_client_timeout_ms = 300;
  config.limits.max_unsent_tokens = 4;
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  const auto timed = [&](const char* cause) {
    return std::vector<Expected>{{"mneme_cancelled_total", {{"cause", cause}}, 1},
                                 {"mneme_cancel_latency_seconds", {}, 1}};
  };
  const auto idle = [&] { return core->RunningCalls() == 0; };
  ExpectMoves(timed("requested"),
              [&] { EXPECT_TRUE(Run(Endless("s"))->Cancel(*generation_).ok()); });
  ExpectMoves(timed("client"), [&] {
    auto running = Run(Endless("s"));
    running->context.TryCancel();
    EXPECT_EQ(running->Drain().error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(WaitFor(idle));
  });
  // Not over the channel: there the client's own timer may be first, and that is a disconnect.
  ExpectMoves(timed("deadline"), [&] {
    CallContext context;
    context.deadline = CallContext::Clock::now() + milliseconds(200);
    CollectingSink sink;
    EXPECT_EQ(core->Generate(context, Endless("s"), sink).code(),
              absl::StatusCode::kDeadlineExceeded);
  });
  ExpectMoves(timed("slow_consumer"), [&] {
    auto request = Endless("s");
    request.set_logprobs(20);
    auto running = Run(request);
    EXPECT_TRUE(WaitFor(idle));
    EXPECT_EQ(running->Drain().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  });
  ExpectMoves(timed("shutdown"), [&] {
    auto running = Run(Endless("s"));
    core->PreemptAll();
    EXPECT_TRUE(running->Drain().ok());
  });
  // Compute stops within a step: far below a second, also on a busy machine.
  for (const auto& family : core->metrics().registry()->Collect()) {
    if (family.name != "mneme_cancel_latency_seconds") continue;
    EXPECT_LT(family.metric[0].histogram.sample_sum, 5);
  }
  // A long read that is cancelled counts as well.
  ExpectMoves({{"mneme_cancel_latency_seconds", {}, 1}}, [&] {
    grpc::ClientContext context;
    v1::ScoreRequest request;
    for (int i = 0; i < 200'000; ++i) request.mutable_token_ids()->add_ids(i % 300);
    std::thread cancel([&] {
      EXPECT_TRUE(WaitFor([&] { return core->RunningCalls() == 1; }));
      std::this_thread::sleep_for(milliseconds(50));
      context.TryCancel();
    });
    v1::ScoreResponse response;
    EXPECT_EQ(generation_->Score(&context, request, &response).error_code(),
              grpc::StatusCode::CANCELLED);
    cancel.join();
    EXPECT_TRUE(WaitFor(idle));
  });
}

TEST_F(MetricFamiliesTest, GenerationsWithoutAReader) {
  Serve();
  auto request = Endless("");
  request.set_on_disconnect(v1::GenerateRequest::CONTINUE);
  auto running = Run(request);
  running->context.TryCancel();
  EXPECT_EQ(running->Drain().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(WaitFor([&] { return Value("mneme_generations_unattended") == 1; }));
  ExpectIs(1, "mneme_generations_unattended");
  ExpectMoves({{"mneme_streams_resumed_total", {}, 1}, {"mneme_generations_kept_bytes", {}, 0}},
              [&] {
                v1::ResumeGenerationRequest resume;
                resume.set_generation(running->generation);
                Running again;
                again.stream = generation_->ResumeGeneration(&again.context, resume);
                again.generation = running->generation;
                v1::GenerateResponse event;
                ASSERT_TRUE(again.stream->Read(&event));
                ExpectIs(0, "mneme_generations_unattended");
                EXPECT_TRUE(again.Cancel(*generation_).ok());
              });
}

TEST_F(MetricFamiliesTest, Trouble) {
  const auto folder = std::filesystem::temp_directory_path() /
                      absl::StrCat("mneme-metrics-", static_cast<int>(getpid()));
  std::filesystem::remove_all(folder);
  constexpr int32_t kPoison = 371;
  WritePoisonedCheckpoint(folder, kPoison);
  config.models = {{"poisoned", folder}};
  config.limits.state_memory_bytes = 300 << 10;  // one state, of 98 KB, and the logits
  Serve();
  for (const char* id : {"a", "b", "c", "d", "e"}) {
    ASSERT_TRUE(CreateOverRpc(id).ok());
    ASSERT_TRUE(Turn(Request(id, "some text", 2)).ok());
  }
  ExpectMoves({{"mneme_evictions_total", {{"tier", "host"}}, 0}}, [&] {
    for (const char* id : {"a", "b", "c", "d", "e"}) {
      ASSERT_TRUE(Turn(Request(id, "", 1)).ok());
    }
  });
  ExpectMoves({{"mneme_state_not_finite_total", {{"model", "poisoned"}}, 1}}, [&] {
    auto request = Request("a", "", 1);
    request.mutable_token_ids()->add_ids(kPoison);
    EXPECT_FALSE(Turn(request).ok());
  });
  ExpectMoves({{"mneme_version_conflicts_total", {}, 1}}, [&] {
    auto request = Request("a", "", 1);
    request.set_expected_version(99);
    EXPECT_FALSE(Turn(request).ok());
  });
  ExpectMoves({{"mneme_store_errors_total", {{"op", "get"}}, 1}}, [&] {
    store->fault = [](const std::string& op) {
      return op == "get" ? absl::UnavailableError("unplugged") : absl::OkStatus();
    };
    EXPECT_FALSE(GetOverRpc(Name("a")).ok());
    store->fault = nullptr;
  });
  Serve();
  ExpectMoves({{"mneme_checksum_failures_total", {}, 1},
               {"mneme_sessions", {{"tier", "store"}, {"state", "damaged"}}, 1}},
              [&] {
                store->corrupt_chunks = true;
                EXPECT_FALSE(Turn(Request("a", "", 1)).ok());
                store->corrupt_chunks = false;
              });
  std::filesystem::remove_all(folder);
}

TEST_F(MetricFamiliesTest, TheDrainShowsItsPhase) {
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  auto running = Run(Endless("s"));
  std::thread drain([&] { server_->Drain(RpcServer::DrainStart::kRefuseWork); });
  // It waits for the turn.
  EXPECT_TRUE(WaitFor([&] { return Value("mneme_drain_phase") == 4; }));
  ExpectIs(4, "mneme_drain_phase");
  core->PreemptAll();
  EXPECT_TRUE(running->Drain().ok());
  drain.join();
  ExpectIs(6, "mneme_drain_phase");
}

}  // namespace
}  // namespace mneme::server
