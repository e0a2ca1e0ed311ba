// Two servers on one store: one writes a session at a time, a late write is refused, and what
// either has in memory is used only if it is what the store has.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "server/core/errors.h"
#include "server/core/lease_table.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// One server's way to the store.
class Way final : public TestStore {
 public:
  struct Faults {
    // Called before each operation on this way; its error is returned instead.
    test::Replaceable<absl::Status(const std::string& op)> before = nullptr;
    // Called after a commit that happened; its error is what the server hears of it.
    test::Replaceable<absl::Status()> after_commit = nullptr;
  };
  Way(std::shared_ptr<Shared> shared, std::shared_ptr<Faults> faults)
      : TestStore(std::move(shared)), faults_(std::move(faults)) {}

  absl::StatusOr<memstore::Record> Get(const memstore::Key& key) const override {
    if (auto s = Before("get"); !s.ok()) return s;
    return TestStore::Get(key);
  }
  absl::Status Commit(const memstore::Transaction& transaction) override {
    if (auto s = Before(transaction.sync ? "commit" : "lease"); !s.ok()) return s;
    if (auto s = TestStore::Commit(transaction); !s.ok()) return s;
    const auto after = faults_->after_commit.Get();
    return after && transaction.sync ? after() : absl::OkStatus();
  }

 private:
  absl::Status Before(const std::string& op) const {
    const auto before = faults_->before.Get();
    return before ? before(op) : absl::OkStatus();
  }
  std::shared_ptr<Faults> faults_;
};

// Holds back whoever passes, until it is opened.
class Gate {
 public:
  void Pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void AwaitSomebody() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ > 0; });
  }
  void Open() {
    std::unique_lock lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int waiting_ = 0;
};

class ReplicasTest : public CoreTest {
 protected:
  static constexpr milliseconds kTtl{600};

  struct Server {
    std::shared_ptr<Way::Faults> faults = std::make_shared<Way::Faults>();
    std::unique_ptr<ServerCore> core;
  };

  void SetUp() override {
    store->shared = true;
    config.replica.lease_ttl_ms = kTtl.count();
    config.replica.lease_renew_ms = 100;
    config.limits.max_unsent_tokens = 1;  // a turn stands while its reader does
    for (auto [server, id] : {std::pair{&a_, "a"}, {&b_, "b"}}) {
      config.replica.name = id;
      auto made = ServerCore::Create(config, std::make_unique<Way>(store, server->faults));
      ASSERT_TRUE(made.ok()) << made.status();
      server->core = *std::move(made);
    }
  }

  absl::Status Turn(Server& server, const v1::GenerateRequest& request, CollectingSink& sink) {
    CallContext context;
    return server.core->Generate(context, request, sink);
  }
  std::vector<int32_t> Say(Server& server, const std::string& id, const std::string& text,
                           int max = 8) {
    CollectingSink sink;
    const absl::Status status = Turn(server, Request(id, text, max), sink);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(sink.final.usage().recomputed_tokens(), 0);
    EXPECT_TRUE(sink.final.committed());
    return sink.tokens;
  }
  void CreateOn(Server& server, const std::string& id) {
    core.swap(server.core);
    Create(id);
    core.swap(server.core);
  }
  v1::Session GetFrom(Server& server, const std::string& id) {
    core.swap(server.core);
    v1::Session session = Get(id);
    core.swap(server.core);
    return session;
  }
  static double Events(Server& server, const std::string& event) {
    for (const auto& family : server.core->metrics().registry()->Collect()) {
      if (family.name != "mneme_lease_events_total") continue;
      for (const auto& metric : family.metric) {
        if (metric.label.at(0).value == event) return metric.counter.value;
      }
    }
    ADD_FAILURE() << "no event " << event;
    return -1;
  }

  // A turn on a thread, which stands still at its first token until Finish.
  struct Standing {
    std::thread thread;
    Gate gate;
    CollectingSink sink;
    absl::Status status;

    void Finish() {
      gate.Open();
      thread.join();
    }
  };
  std::unique_ptr<Standing> Stand(Server& server, const v1::GenerateRequest& request) {
    auto turn = std::make_unique<Standing>();
    turn->sink.on_event = [turn = turn.get()](const v1::GenerateResponse& response) {
      if (response.has_delta()) turn->gate.Pass();
      return true;
    };
    turn->thread = std::thread([this, &server, request, turn = turn.get()] {
      turn->status = Turn(server, request, turn->sink);
    });
    turn->gate.AwaitSomebody();
    return turn;
  }

  Server a_, b_;
};

TEST_F(ReplicasTest, ASessionGoesFromServerToServer) {
  CreateOn(a_, "moves");
  CreateOn(a_, "stays");
  std::vector<int32_t> moved, stayed;
  const char* texts[] = {"The lighthouse", " and the sea", " in the night", " were one", " again"};
  Server* servers[] = {&a_, &b_, &b_, &a_, &b_};
  for (int i = 0; i < 5; ++i) {
    for (int32_t token : Say(*servers[i], "moves", texts[i])) moved.push_back(token);
    for (int32_t token : Say(a_, "stays", texts[i])) stayed.push_back(token);
  }
  EXPECT_EQ(moved, stayed);
  EXPECT_EQ(GetFrom(a_, "moves").version(), 5);
  EXPECT_EQ(GetFrom(a_, "moves").position_tokens(), GetFrom(b_, "stays").position_tokens());
  EXPECT_EQ(Events(a_, "taken"), 7);
  EXPECT_EQ(Events(b_, "taken"), 3);
  EXPECT_EQ(Events(a_, "released"), 7);
  EXPECT_EQ(Events(b_, "taken_over"), 0);
}

TEST_F(ReplicasTest, ASecondWriterIsToldWhoWrites) {
  CreateOn(a_, "s");
  auto running = Stand(a_, Request("s", "The lighthouse", 20));

  CollectingSink refused;
  const absl::Status busy = Turn(b_, Request("s", "More", 4), refused);
  EXPECT_EQ(ReasonOf(busy), reason::kSessionBusy) << busy;
  EXPECT_EQ(Metadata(busy, "owner"), "a");
  EXPECT_EQ(Metadata(busy, "current_version"), "0");
  EXPECT_EQ(GetFrom(b_, "s").state(), v1::Session::RUNNING);
  EXPECT_EQ(GetFrom(a_, "s").state(), v1::Session::RUNNING);

  // Who queues gets its turn; what anybody changes of the session beside does not disturb it.
  auto request = Request("s", "More", 4);
  request.set_conflict_policy(v1::GenerateRequest::QUEUE);
  CollectingSink queued;
  absl::Status queued_status;
  std::thread waits([&] { queued_status = Turn(b_, request, queued); });
  {
    CallContext context;
    v1::UpdateSessionRequest update;
    update.mutable_session()->set_name(Name("s"));
    update.mutable_session()->set_display_name("Nova");
    update.mutable_update_mask()->add_paths("display_name");
    EXPECT_TRUE(b_.core->UpdateSession(context, update).ok());
  }
  running->Finish();
  waits.join();
  EXPECT_TRUE(running->status.ok()) << running->status;
  EXPECT_TRUE(running->sink.final.committed());
  EXPECT_TRUE(queued_status.ok()) << queued_status;
  EXPECT_EQ(queued.started.version(), 1);
  EXPECT_EQ(GetFrom(a_, "s").version(), 2);
  EXPECT_EQ(GetFrom(a_, "s").display_name(), "Nova");
  EXPECT_EQ(GetFrom(a_, "s").state(), v1::Session::ACTIVE);
}

TEST_F(ReplicasTest, ALateWriteIsRefused) {
  CreateOn(a_, "s");
  Say(a_, "s", "The lighthouse");
  // The whole of server A stands still on its way to the store: the commit, and the renewals.
  Gate gate;
  std::atomic<bool> stand{false};
  a_.faults->before = [&](const std::string&) {
    if (stand) gate.Pass();
    return absl::OkStatus();
  };
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse& response) {
    if (response.has_delta()) stand = true;
    return true;
  };
  absl::Status late;
  std::thread turn([&] { late = Turn(a_, Request("s", " alone", 4), sink); });
  gate.AwaitSomebody();

  // Not before its time is over.
  CollectingSink refused;
  EXPECT_EQ(ReasonOf(Turn(b_, Request("s", " taken", 4), refused)), reason::kSessionBusy);
  auto request = Request("s", " taken", 4);
  request.set_conflict_policy(v1::GenerateRequest::QUEUE);
  CollectingSink taken;
  const absl::Status status = Turn(b_, request, taken);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(Events(b_, "taken_over"), 1);

  gate.Open();
  turn.join();
  EXPECT_EQ(ReasonOf(late), reason::kLeaseLost) << late;
  EXPECT_FALSE(sink.has_final);
  EXPECT_EQ(Events(a_, "lost"), 1);
  EXPECT_EQ(GetFrom(a_, "s").version(), 2);

  // A goes on from what B left, as if there had been no A.
  stand = false;
  CreateOn(b_, "alone");
  Say(b_, "alone", "The lighthouse");
  Say(b_, "alone", " taken", 4);
  EXPECT_EQ(Say(a_, "s", " then"), Say(b_, "alone", " then"));
}

TEST_F(ReplicasTest, AServerThatCannotRenewStops) {
  CreateOn(a_, "s");
  // Its first delta says that it runs; then its way to the store is cut.
  CollectingSink sink;
  std::atomic<int> deltas{0};
  sink.on_event = [&](const v1::GenerateResponse& response) {
    if (response.has_delta() && deltas++ == 0) {
      a_.faults->before = [](const std::string&) { return absl::UnavailableError("cut"); };
    }
    std::this_thread::sleep_for(milliseconds(2));
    return true;
  };
  const auto start = Clock::now();
  const absl::Status status = Turn(a_, Request("s", "The lighthouse", 60000), sink);
  EXPECT_EQ(ReasonOf(status), reason::kLeaseLost) << status;
  EXPECT_LT(Clock::now() - start, 10 * kTtl);
  EXPECT_FALSE(sink.has_final);
  a_.faults->before = nullptr;
  EXPECT_EQ(GetFrom(a_, "s").version(), 0);

  // Its own leftover does not stand in its way.
  Say(a_, "s", "Again");
}

TEST_F(ReplicasTest, ALeaseIsHeldForAsLongAsTheTurnRuns) {
  CreateOn(a_, "s");
  auto running = Stand(a_, Request("s", "The lighthouse", 20));
  std::this_thread::sleep_for(2 * kTtl);
  CollectingSink refused;
  EXPECT_EQ(ReasonOf(Turn(b_, Request("s", "More", 4), refused)), reason::kSessionBusy);
  running->Finish();
  EXPECT_TRUE(running->status.ok()) << running->status;
  a_.core.swap(core);
  EXPECT_EQ(Gauge("mneme_leases_held"), 0);
  a_.core.swap(core);
}

TEST_F(ReplicasTest, ACommitOfUnknownOutcomeLeavesTheSessionUsable) {
  CreateOn(a_, "s");
  a_.faults->after_commit = [] { return absl::UnavailableError("connection lost"); };
  CollectingSink sink;
  const absl::Status status = Turn(a_, Request("s", "The lighthouse", 8), sink);
  EXPECT_EQ(ReasonOf(status), reason::kStoreUnavailable) << status;
  a_.faults->after_commit = nullptr;
  // It did happen. Both servers see that, at once.
  EXPECT_EQ(GetFrom(b_, "s").version(), 1);
  Say(b_, "s", " and");
  Say(a_, "s", " and");
  EXPECT_EQ(GetFrom(b_, "s").version(), 3);
}

TEST_F(ReplicasTest, IngestsAndRewindsTakeTheLeaseToo) {
  CreateOn(a_, "s");
  Say(a_, "s", "The lighthouse");
  CallContext context;
  v1::IngestRequest::Start start;
  start.set_session(Name("s"));
  start.set_ingest_id("i");
  auto ingest = a_.core->StartIngest(context, start);
  ASSERT_TRUE(ingest.ok()) << ingest.status();

  v1::RewindSessionRequest rewind;
  rewind.set_name(Name("s"));
  rewind.set_position_tokens(0);
  CallContext other;
  EXPECT_EQ(ReasonOf(b_.core->RewindSession(other, rewind).status()), reason::kSessionBusy);
  v1::DeleteSessionRequest remove;
  remove.set_name(Name("s"));
  EXPECT_EQ(ReasonOf(b_.core->DeleteSession(other, remove).status()), reason::kSessionBusy);

  v1::IngestRequest::Data data;
  data.set_data(" was dark.");
  data.set_last(true);
  ASSERT_TRUE((*ingest)->Write(data).ok());
  ingest->reset();
  EXPECT_EQ(GetFrom(b_, "s").version(), 2);
  auto rewound = b_.core->RewindSession(other, rewind);
  EXPECT_TRUE(rewound.ok()) << rewound.status();
  CreateOn(a_, "new");
  EXPECT_EQ(Say(a_, "s", "The lighthouse"), Say(b_, "new", "The lighthouse"));
  EXPECT_TRUE(b_.core->DeleteSession(other, remove).ok());
  EXPECT_EQ(GetFrom(a_, "s").state(), v1::Session::DELETED);
}

// Many writers on both servers, one of which is cut off now and then: each commit that was
// acknowledged counts once, and the transcript is the committed turns in their order.
TEST_F(ReplicasTest, AcknowledgedTurnsAndVersionsAgree) {
  constexpr int kSessions = 3, kThreads = 4, kTurns = 25;
  for (int i = 0; i < kSessions; ++i) CreateOn(a_, absl::StrCat("s", i));
  std::atomic<int> committed[kSessions] = {}, tokens[kSessions] = {};
  std::atomic<bool> stop{false};
  std::thread cuts([&] {
    std::mt19937 random(7);
    while (!stop) {
      std::this_thread::sleep_for(milliseconds(random() % 150));
      Server& server = random() % 2 ? a_ : b_;
      server.faults->before = [](const std::string& op) {
        return op == "lease" ? absl::UnavailableError("cut") : absl::OkStatus();
      };
      std::this_thread::sleep_for(milliseconds(random() % 60));
      server.faults->before = nullptr;
    }
  });
  std::vector<std::thread> writers;
  for (int t = 0; t < kThreads; ++t) {
    writers.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < kTurns; ++i) {
        const int s = static_cast<int>(random() % kSessions);
        auto request = Request(absl::StrCat("s", s), "On", 1 + static_cast<int>(random() % 3));
        if (random() % 2) request.set_conflict_policy(v1::GenerateRequest::QUEUE);
        CollectingSink sink;
        const absl::Status status = Turn(random() % 2 ? a_ : b_, request, sink);
        if (status.ok() && sink.final.committed()) {
          ++committed[s];
          tokens[s] += static_cast<int>(sink.final.usage().input_tokens() +
                                        sink.final.usage().output_tokens());
        } else {
          const std::string why = ReasonOf(status);
          EXPECT_TRUE(why == reason::kSessionBusy || why == reason::kLeaseLost ||
                      why == reason::kStoreUnavailable)
              << status;
        }
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  stop = true;
  cuts.join();
  a_.faults->before = nullptr;
  b_.faults->before = nullptr;
  for (int s = 0; s < kSessions; ++s) {
    const v1::Session session = GetFrom(a_, absl::StrCat("s", s));
    EXPECT_EQ(session.version(), committed[s]);
    EXPECT_EQ(session.position_tokens(), tokens[s]);
    EXPECT_GT(session.version(), 0);
    // Whoever goes on reads what the store has.
    EXPECT_EQ(Say(a_, absl::StrCat("s", s), " then").size(), 8u);
    Say(b_, absl::StrCat("s", s), " then");
  }
}

TEST_F(ReplicasTest, ALeaseThatNobodyUsesIsSwept) {
  CreateOn(a_, "s");
  Say(a_, "s", "The lighthouse");
  const memstore::Key key = LeaseTable::KeyOf({"default", "s"});
  auto record = store->store->Get(key);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_GT(record->expire_time, absl::Now() + absl::Hours(23));
  ASSERT_TRUE(store->store
                  ->Commit({.puts = {{.key = key,
                                      .expected_version = record->version,
                                      .value = record->value,
                                      .expire_time = absl::Now()}}})
                  .ok());
  for (int i = 0; i < 500 && store->store->Get(key).ok(); ++i) {
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_TRUE(absl::IsNotFound(store->store->Get(key).status()));
  Say(b_, "s", " and");
}

}  // namespace
}  // namespace mneme::server
