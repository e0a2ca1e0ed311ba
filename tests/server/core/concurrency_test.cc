// Many calls at once: batching changes no result, cancellation leaves nothing behind, one writer
// per session, states that do not fit come back from the store.
#include <chrono>
#include <random>
#include <thread>

#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;

// From the start of a call until it stands in its session's queue.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr milliseconds kUntilQueued{400};
#else
constexpr milliseconds kUntilQueued{40};
#endif

class ConcurrencyTest : public CoreTest {
 protected:
  void ExpectIdle() {
    EXPECT_EQ(core->RunningCalls(), 0);
    EXPECT_EQ(Gauge("mneme_requests_running"), 0);
    EXPECT_EQ(Gauge("mneme_requests_waiting"), 0);
    EXPECT_FALSE(TryGet("none").ok());  // any call publishes it
    EXPECT_EQ(Gauge("mneme_orphan_sequences"), 0);
  }
};

TEST_F(ConcurrencyTest, NeighboursChangeNothing) {
  Start();
  constexpr int kStreams = 12;
  const auto request = [](int i) {
    std::string text;
    for (int w = 0; w <= i * 3; ++w) text += absl::StrCat("w", w * i, " ");
    auto r = Request("", text, 20 + i);
    r.mutable_sampling()->set_temperature(i % 2 ? 1.0f : 0.0f);
    r.mutable_sampling()->set_seed(i);
    return r;
  };
  std::vector<CollectingSink> alone(kStreams), together(kStreams);
  for (int i = 0; i < kStreams; ++i) ASSERT_TRUE(Generate(request(i), alone[i]).ok());
  std::vector<std::thread> threads;
  for (int i = 0; i < kStreams; ++i) {
    threads.emplace_back([&, i] { EXPECT_TRUE(Generate(request(i), together[i]).ok()); });
  }
  for (auto& t : threads) t.join();
  for (int i = 0; i < kStreams; ++i) {
    EXPECT_EQ(together[i].tokens, alone[i].tokens) << i;
    EXPECT_EQ(together[i].text, alone[i].text) << i;
  }
  ExpectIdle();
}

TEST_F(ConcurrencyTest, CancelAtAnyMomentLeavesNothing) {
  Start();
  Create("witness");
  const std::vector<int32_t> expected = Say("", "undisturbed", 150).tokens;
  CollectingSink witness;
  std::thread neighbour(
      [&] { EXPECT_TRUE(Generate(Request("witness", "undisturbed", 150), witness).ok()); });
  constexpr int kThreads = 4, kRounds = 40;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    const std::string id = absl::StrCat("c", t);
    Create(id);
    threads.emplace_back([&, t, id] {
      std::mt19937 random(100 + t);
      for (int round = 0; round < kRounds; ++round) {
        CallContext context;
        const auto cause = random() % 3;
        const auto delay = std::chrono::microseconds(random() % 4000);
        if (cause == 0) context.deadline = CallContext::Clock::now() + delay;
        std::thread canceller([&] {
          std::this_thread::sleep_for(delay);
          if (cause == 1) context.RequestCancel(CallContext::Cancel::kClient);
          if (cause == 2) context.RequestCancel(CallContext::Cancel::kRequested);
        });
        auto request = Request(id, "some input that takes a few chunks to read, or so", 60000);
        if (random() % 2) request.set_commit_policy(v1::GenerateRequest::DISCARD);
        CollectingSink sink;
        const absl::Status status = core->Generate(context, request, sink);
        canceller.join();
        EXPECT_TRUE(status.ok() ? cause == 2 : !sink.has_final) << status;
      }
    });
  }
  for (auto& t : threads) t.join();
  neighbour.join();
  EXPECT_EQ(witness.tokens, expected);
  ExpectIdle();
  RecordProperty("trials", kThreads * kRounds);
  // Whatever was committed is whole: position, transcript and state agree.
  for (int t = 0; t < kThreads; ++t) {
    const std::string id = absl::StrCat("c", t);
    const v1::Session session = Get(id);
    EXPECT_EQ(session.state(), v1::Session::ACTIVE);
    if (session.position_tokens() == 0) continue;
    const auto next = Say(id, "", 4);
    CallContext context;
    v1::RewindSessionRequest rewind;
    rewind.set_name(Name(id));
    rewind.set_position_tokens(session.position_tokens());
    ASSERT_TRUE(core->RewindSession(context, rewind).ok());
    EXPECT_EQ(Say(id, "", 4).tokens, next.tokens);
  }
}

TEST_F(ConcurrencyTest, ForkWhileTheParentGenerates) {
  Start();
  Create("p");
  Say("p", "the parent reads this", 4);
  const auto expected = [&] {
    const auto all = Say("", "the parent reads this", 12).tokens;
    return std::vector<int32_t>(all.begin() + 4, all.end());
  }();
  v1::ForkSessionResponse children;
  CollectingSink parent;
  parent.on_event = [&](const v1::GenerateResponse& r) {
    if (r.has_delta() && children.sessions_size() == 0) {
      CallContext context;
      v1::ForkSessionRequest fork;
      fork.set_name(Name("p"));
      fork.set_count(64);
      auto forked = core->ForkSession(context, fork);
      EXPECT_TRUE(forked.ok()) << forked.status();
      if (forked.ok()) children = *forked;
      EXPECT_EQ(Get("p").state(), v1::Session::RUNNING);
    }
    return true;
  };
  ASSERT_TRUE(Generate(Request("p", "", 100), parent).ok());
  ASSERT_EQ(children.sessions_size(), 64);
  std::vector<std::thread> threads;
  std::vector<CollectingSink> sinks(64);
  for (int i = 0; i < 64; ++i) {
    threads.emplace_back([&, i] {
      auto request = Request("", "", 8);
      request.set_session(children.sessions(i).name());
      EXPECT_TRUE(Generate(request, sinks[i]).ok());
    });
  }
  for (auto& t : threads) t.join();
  for (const auto& sink : sinks) EXPECT_EQ(sink.tokens, expected);
  ExpectIdle();
  RecordProperty("trials", children.sessions_size());
}

TEST_F(ConcurrencyTest, OneWriterAndAQueue) {
  config.limits.max_unsent_tokens = 1;  // a turn waits for its reader after its first token
  Start();
  Create("s");
  std::atomic<bool> running{false}, go{false};
  CollectingSink first;
  first.on_event = [&](const v1::GenerateResponse&) {
    running = true;
    while (!go) std::this_thread::sleep_for(milliseconds(1));
    return true;
  };
  std::thread holder([&] { EXPECT_TRUE(Generate(Request("s", "first", 3), first).ok()); });
  while (!running) std::this_thread::sleep_for(milliseconds(1));

  CollectingSink refused;
  const absl::Status busy = Generate(Request("s", "x", 1), refused);
  EXPECT_EQ(busy.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(busy), reason::kSessionBusy);
  EXPECT_EQ(Metadata(busy, "current_version"), "0");
  EXPECT_TRUE(busy.GetPayload("type.googleapis.com/google.rpc.RetryInfo").has_value());
  EXPECT_EQ(ReasonOf(Delete("s").status()), reason::kSessionBusy);

  // Eight wait, in order; the ninth is refused; one of them gives up.
  std::vector<std::thread> waiters;
  std::vector<CollectingSink> sinks(8);
  std::vector<CallContext> contexts(8);
  for (int i = 0; i < 8; ++i) {
    std::atomic<bool> started{false};
    waiters.emplace_back([&, i] {
      auto request = Request("s", "next", 1);
      request.set_conflict_policy(v1::GenerateRequest::QUEUE);
      started = true;
      const absl::Status status = core->Generate(contexts[i], request, sinks[i]);
      EXPECT_EQ(status.ok(), i != 3) << status;
    });
    while (!started) std::this_thread::sleep_for(milliseconds(1));
    std::this_thread::sleep_for(kUntilQueued);  // so that the order is known
  }
  auto ninth = Request("s", "x", 1);
  ninth.set_conflict_policy(v1::GenerateRequest::QUEUE);
  EXPECT_EQ(ReasonOf(Generate(ninth, refused)), reason::kSessionBusy);
  contexts[3].RequestCancel(CallContext::Cancel::kClient);
  waiters[3].join();
  go = true;
  holder.join();
  for (int i = 0; i < 8; ++i) {
    if (i != 3) waiters[i].join();
  }
  int64_t version = 1;
  for (int i = 0; i < 8; ++i) {
    if (i != 3) {
      EXPECT_EQ(sinks[i].final.version(), ++version) << i;
    }
  }
  EXPECT_EQ(Get("s").version(), 8);
}

TEST_F(ConcurrencyTest, ForcedDeleteEndsTheTurn) {
  Start();
  Create("s");
  CollectingSink sink;
  std::atomic<bool> running{false};
  sink.on_event = [&](const v1::GenerateResponse&) {
    running = true;
    return true;
  };
  std::thread turn([&] { EXPECT_TRUE(Generate(Request("s", "go", 60000), sink).ok()); });
  while (!running) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_TRUE(Delete("s", true).ok());
  turn.join();
  EXPECT_EQ(sink.final.finish_reason(), v1::CANCELLED);
  EXPECT_EQ(Get("s").state(), v1::Session::DELETED);
  ExpectIdle();
}

TEST_F(ConcurrencyTest, StatesComeBackFromTheStore) {
  // Room for two states; ten sessions in turn.
  CallContext context;
  Start();
  v1::GetModelRequest get;
  get.set_name("models/tiny");
  const v1::Model model = *core->GetModel(context, get);
  config.limits.state_memory_bytes = 2 * (model.state_bytes() + model.vocab_size() * 4) + 100;
  Start();
  std::vector<std::vector<int32_t>> tokens(10);
  for (int i = 0; i < 10; ++i) Create(absl::StrCat("s", i));
  std::vector<std::thread> threads;
  for (int i = 0; i < 10; ++i) {
    threads.emplace_back([&, i] {
      for (int turn = 0; turn < 4; ++turn) {
        const auto sink = Say(absl::StrCat("s", i), turn == 0 ? absl::StrCat("start ", i) : "", 5);
        tokens[i].insert(tokens[i].end(), sink.tokens.begin(), sink.tokens.end());
        EXPECT_EQ(sink.final.usage().recomputed_tokens(), 0);
      }
    });
  }
  for (auto& t : threads) t.join();
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(tokens[i], Say("", absl::StrCat("start ", i), 20).tokens) << i;
  }
  EXPECT_LE(Gauge("mneme_state_bytes"), config.limits.state_memory_bytes);
  EXPECT_GT(Counter("mneme_evictions_total"), 0);
  ExpectIdle();

  config.limits.state_memory_bytes = model.state_bytes() / 2;
  EXPECT_FALSE(ServerCore::Create(config, std::make_unique<TestStore>(store)).ok());
}

TEST_F(ConcurrencyTest, QueueFull) {
  config.limits.max_running_streams = 1;
  config.limits.max_queued_requests = 0;
  config.limits.max_unsent_tokens = 1;  // a turn waits for its reader after its first token
  Start();
  CollectingSink outer;
  outer.on_event = [&](const v1::GenerateResponse& r) {
    if (r.has_started()) {
      CollectingSink inner;
      const absl::Status full = Generate(Request("", "x", 1), inner);
      EXPECT_EQ(full.code(), absl::StatusCode::kUnavailable);
      EXPECT_EQ(ReasonOf(full), reason::kQueueFull);
      EXPECT_TRUE(full.GetPayload("type.googleapis.com/google.rpc.RetryInfo").has_value());
    }
    return true;
  };
  EXPECT_TRUE(Generate(Request("", "x", 20), outer).ok());
  ExpectIdle();
}

TEST_F(ConcurrencyTest, LongPrefillLetsOthersGoOn) {
  config.limits.prefill_chunk_tokens = 4;
  config.limits.max_step_tokens = 8;
  Start();
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "word ";
  std::atomic<bool> done{false};
  CollectingSink reader;
  std::thread prefill([&] {
    EXPECT_TRUE(Generate(Request("", text, 1), reader).ok());
    done = true;
  });
  std::this_thread::sleep_for(milliseconds(5));
  const auto other = Say("", "short", 20);
  EXPECT_FALSE(done) << "the short stream waited for the long input";
  EXPECT_EQ(other.tokens.size(), 20u);
  prefill.join();
}

}  // namespace
}  // namespace mneme::server
