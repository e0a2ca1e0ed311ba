// Mutating calls that are sent again with their request_id: answered again, and done once.
#include <google/protobuf/util/message_differencer.h>

#include <set>
#include <thread>

#include "server/core/session_names.h"
#include "tests/server/core/core_test_base.h"
#include "tests/support/wait_for.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;
using test::WaitFor;
using Cancel = CallContext::Cancel;

class RequestIdTest : public CoreTest {
 protected:
  static v1::CreateSessionRequest CreateRequest() {
    v1::CreateSessionRequest request;
    request.set_request_id(MakeUid());
    return request;
  }
  absl::StatusOr<v1::Session> Create(const v1::CreateSessionRequest& request,
                                     const std::string& tenant = "default") {
    CallContext context;
    context.tenant = tenant;
    return core->CreateSession(context, request);
  }
  using CoreTest::Create;
  template <typename Response, typename Request>
  absl::StatusOr<Response> Call(absl::StatusOr<Response> (ServerCore::*method)(CallContext&,
                                                                               const Request&),
                                const Request& request) {
    CallContext context;
    return (core.get()->*method)(context, request);
  }
  int NumSessions() {
    CallContext context;
    v1::ListSessionsRequest request;
    request.set_show_deleted(true);
    return core->ListSessions(context, request)->sessions_size();
  }
};

TEST_F(RequestIdTest, TheSameRequestIsAnsweredAgain) {
  Start();
  auto request = CreateRequest();
  (*request.mutable_session()->mutable_labels())["a"] = "1";
  (*request.mutable_session()->mutable_labels())["b"] = "2";
  const auto first = Create(request);
  ASSERT_TRUE(first.ok()) << first.status();
  // Maps have no order.
  request.mutable_session()->clear_labels();
  (*request.mutable_session()->mutable_labels())["b"] = "2";
  (*request.mutable_session()->mutable_labels())["a"] = "1";
  const auto again = Create(request);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(*again, *first));
  EXPECT_EQ(NumSessions(), 1);
  request.set_request_id(MakeUid());
  EXPECT_NE(Create(request)->name(), first->name());
}

TEST_F(RequestIdTest, AnIdIsOfOneRequest) {
  Start();
  auto request = CreateRequest();
  ASSERT_TRUE(Create(request).ok());
  auto other = request;
  other.set_session_id("other");
  EXPECT_EQ(ReasonOf(Create(other).status()), reason::kRequestIdReused);
  EXPECT_EQ(BadFields(Create(other).status()), std::vector<std::string>{"request_id"});
  v1::UndeleteSessionRequest method;
  method.set_request_id(request.request_id());
  EXPECT_EQ(ReasonOf(Call(&ServerCore::UndeleteSession, method).status()),
            reason::kRequestIdReused);
  EXPECT_EQ(NumSessions(), 1);
  // Another tenant has its own.
  EXPECT_TRUE(Create(other, "elsewhere").ok());
  for (const char* bad :
       {"x", "01234567-89ab-1def-8123-456789abcdef", "01234567-89ab-4def-7123-456789abcdef",
        "01234567-89ab-4def-8123-456789abcdeg", "01234567-89ab-4def-8123-456789abcdef0"}) {
    request.set_request_id(bad);
    EXPECT_EQ(ReasonOf(Create(request).status()), reason::kFieldInvalid) << bad;
    EXPECT_EQ(BadFields(Create(request).status()), std::vector<std::string>{"request_id"});
  }
}

TEST_F(RequestIdTest, WhatFailedIsTriedAgain) {
  Start();
  v1::DeleteSessionRequest request;
  request.set_name(Name("s"));
  request.set_request_id(MakeUid());
  EXPECT_EQ(ReasonOf(Call(&ServerCore::DeleteSession, request).status()), reason::kSessionNotFound);
  Create("s");
  ASSERT_TRUE(Call(&ServerCore::DeleteSession, request).ok());
  // Deleted once: a second time it would not be there.
  EXPECT_TRUE(Call(&ServerCore::DeleteSession, request).ok());

  CollectingSink sink;
  auto turn = Request("t", "abc", 3);
  turn.set_request_id(MakeUid());
  EXPECT_EQ(ReasonOf(Generate(turn, sink)), reason::kSessionNotFound);
  Create("t");
  EXPECT_TRUE(Generate(turn, sink).ok());
}

TEST_F(RequestIdTest, CallsAtOnceAreDoneOnce) {
  Start();
  const auto request = CreateRequest();
  std::vector<std::thread> threads;
  std::vector<std::string> names(16);
  for (std::string& name : names) {
    threads.emplace_back([&] { name = Create(request)->name(); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), 1u);
  EXPECT_EQ(NumSessions(), 1);
}

TEST_F(RequestIdTest, ATurnThatRunsIsReadFromItsBeginning) {
  config.limits.max_unsent_tokens = 4;
  Start();
  Create("s");
  auto request = Request("s", "abc", 30);
  request.set_request_id(MakeUid());
  CallContext context;
  CollectingSink first, second;
  std::atomic<bool> begun = false;
  first.on_event = [&](const v1::GenerateResponse&) {
    begun = true;
    return WaitFor([&] { return context.cancelled() != Cancel::kNone; }) && false;
  };
  std::thread reader([&] {
    EXPECT_EQ(ReasonOf(core->Generate(context, request, first)), reason::kStreamTakenOver);
  });
  ASSERT_TRUE(WaitFor([&] { return begun.load(); }));
  EXPECT_TRUE(Generate(request, second).ok());
  reader.join();
  EXPECT_EQ(second.tokens.size(), 30u);
  EXPECT_EQ(second.final.version(), 1);
  CollectingSink third;
  EXPECT_TRUE(Generate(request, third).ok());
  EXPECT_EQ(third.started.generation(), second.started.generation());
  EXPECT_EQ(third.tokens, second.tokens);
  EXPECT_EQ(Get("s").version(), 1);
}

TEST_F(RequestIdTest, ACallThatBreaksBeforeItsFirstEventIsFoundAgain) {
  Start();
  Create("s");
  auto request = Request("s", "abc", 5);
  request.set_request_id(MakeUid());
  request.set_on_disconnect(v1::GenerateRequest::CONTINUE);
  for (int i = 0; i < 50; ++i) {
    CallContext context;
    context.RequestCancel(Cancel::kClient);  // before, while or after its turn has begun
    CollectingSink nothing;
    EXPECT_EQ(core->Generate(context, request, nothing).code(), absl::StatusCode::kCancelled);
    CollectingSink sink;
    const absl::Status status = Generate(request, sink);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(sink.final.finish_reason(), v1::MAX_TOKENS);
    EXPECT_EQ(sink.tokens.size(), 5u);
    EXPECT_EQ(sink.final.version(), i + 1);
    request.set_request_id(MakeUid());
  }
  // What fails without a reader can be tried again as well.
  request.set_session(Name("t"));
  CallContext context;
  context.RequestCancel(Cancel::kClient);
  CollectingSink nothing, sink;
  EXPECT_FALSE(core->Generate(context, request, nothing).ok());
  EXPECT_TRUE(
      WaitFor([&] { return ReasonOf(Generate(request, nothing)) == reason::kSessionNotFound; }));
  Create("t");
  EXPECT_TRUE(Generate(request, sink).ok());
}

TEST_F(RequestIdTest, ATurnIsCancelledByTheRequestThatAskedForIt) {
  Start();
  auto request = Request("", "abc", 60000);
  request.set_request_id(MakeUid());
  CollectingSink sink;
  std::atomic<bool> begun = false;
  sink.on_event = [&](const v1::GenerateResponse&) { return begun = true; };
  std::thread reader([&] { EXPECT_TRUE(Generate(request, sink).ok()); });
  ASSERT_TRUE(WaitFor([&] { return begun.load(); }));
  v1::CancelGenerationRequest cancel;
  cancel.set_request_id(MakeUid());
  EXPECT_EQ(ReasonOf(Call(&ServerCore::CancelGeneration, cancel).status()),
            reason::kGenerationNotFound);
  cancel.set_request_id(request.request_id());
  EXPECT_TRUE(Call(&ServerCore::CancelGeneration, cancel).ok());
  reader.join();
  EXPECT_EQ(sink.final.finish_reason(), v1::CANCELLED);
}

TEST_F(RequestIdTest, OutputThatIsNotKeptIsNotMadeAgain) {
  config.generations.keep_ms = 0;
  Start();
  auto request = Request("", "abc", 3);
  request.set_request_id(MakeUid());
  CollectingSink sink, again;
  ASSERT_TRUE(Generate(request, sink).ok());
  EXPECT_EQ(ReasonOf(Generate(request, again)), reason::kResumeExpired);
}

TEST_F(RequestIdTest, ARestartDoesNothingTwice) {
  Start();
  const auto create = CreateRequest();
  const std::string name = Create(create)->name();
  auto turn = Request("", "abc", 5);
  turn.set_session(name);
  turn.set_request_id(MakeUid());
  CollectingSink sink;
  ASSERT_TRUE(Generate(turn, sink).ok());
  v1::ForkSessionRequest fork;
  fork.set_name(name);
  fork.set_count(3);
  fork.set_request_id(MakeUid());
  const auto children = Call(&ServerCore::ForkSession, fork);
  ASSERT_TRUE(children.ok());
  v1::RewindSessionRequest rewind;
  rewind.set_name(name);
  rewind.set_position_tokens(2);
  rewind.set_request_id(MakeUid());
  ASSERT_TRUE(Call(&ServerCore::RewindSession, rewind).ok());
  v1::UpdateSessionRequest update;
  update.mutable_session()->set_name(name);
  update.mutable_session()->set_display_name("mine");
  update.mutable_update_mask()->add_paths("display_name");
  update.set_request_id(MakeUid());
  ASSERT_TRUE(Call(&ServerCore::UpdateSession, update).ok());
  v1::DeleteSessionRequest purge;
  purge.set_name(children->sessions(0).name());
  purge.set_purge(true);
  purge.set_request_id(MakeUid());
  ASSERT_TRUE(Call(&ServerCore::DeleteSession, purge).ok());
  v1::DeleteSessionRequest remove;
  remove.set_name(children->sessions(1).name());
  remove.set_request_id(MakeUid());
  ASSERT_TRUE(Call(&ServerCore::DeleteSession, remove).ok());
  v1::UndeleteSessionRequest undelete;
  undelete.set_name(remove.name());
  undelete.set_request_id(MakeUid());
  ASSERT_TRUE(Call(&ServerCore::UndeleteSession, undelete).ok());
  v1::CreateSnapshotRequest keep;
  keep.set_parent(name);
  keep.set_request_id(MakeUid());
  const auto kept = Call(&ServerCore::CreateSnapshot, keep);
  ASSERT_TRUE(kept.ok()) << kept.status();
  v1::CreateSnapshotRequest keep_other = keep;
  keep_other.set_snapshot_id("other");
  keep_other.set_request_id(MakeUid());
  ASSERT_TRUE(Call(&ServerCore::CreateSnapshot, keep_other).ok());
  v1::DeleteSnapshotRequest drop;
  drop.set_name(name + "/snapshots/other");
  drop.set_request_id(MakeUid());
  ASSERT_TRUE(Call(&ServerCore::DeleteSnapshot, drop).ok());
  const int sessions = NumSessions();
  Start();

  EXPECT_EQ(Create(create)->name(), name);
  CollectingSink again;
  const absl::Status committed = Generate(turn, again);
  EXPECT_EQ(ReasonOf(committed), reason::kResumeExpired);
  EXPECT_EQ(Metadata(committed, "version"), "1");
  const auto same = Call(&ServerCore::ForkSession, fork);
  ASSERT_TRUE(same.ok()) << same.status();
  ASSERT_EQ(same->sessions_size(), 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(same->sessions(i).name(), children->sessions(i).name());
  EXPECT_EQ(same->sessions(0).state(), v1::Session::DELETED);
  const auto rewound = Call(&ServerCore::RewindSession, rewind);
  ASSERT_TRUE(rewound.ok()) << rewound.status();
  EXPECT_EQ(rewound->session().version(), 2);
  EXPECT_EQ(Call(&ServerCore::UpdateSession, update)->display_name(), "mine");
  EXPECT_EQ(Call(&ServerCore::DeleteSession, purge)->state(), v1::Session::DELETED);
  EXPECT_EQ(Call(&ServerCore::DeleteSession, remove)->name(), remove.name());
  EXPECT_EQ(Call(&ServerCore::UndeleteSession, undelete)->state(), v1::Session::ACTIVE);
  const auto kept_again = Call(&ServerCore::CreateSnapshot, keep);
  ASSERT_TRUE(kept_again.ok()) << kept_again.status();
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(*kept_again, *kept));
  EXPECT_EQ(Call(&ServerCore::DeleteSnapshot, drop)->name(), drop.name());
  EXPECT_EQ(Call(&ServerCore::CreateSnapshot, keep_other)->name(), drop.name());  // gone since
  EXPECT_EQ(NumSessions(), sessions);
  auto other = create;
  other.set_session_id("other");
  EXPECT_EQ(ReasonOf(Create(other).status()), reason::kRequestIdReused);
}

TEST_F(RequestIdTest, TwoServersOfAStoreDoItOnce) {
  store->shared = true;
  Start();
  auto other = ServerCore::Create(config, std::make_unique<TestStore>(store));
  ASSERT_TRUE(other.ok()) << other.status();
  const auto request = CreateRequest();
  // The other server is done between this one's look and its write.
  std::atomic<bool> first = true;
  store->fault = [&](const std::string& op) {
    if (op == "commit" && first.exchange(false)) {
      CallContext context;
      EXPECT_TRUE((*other)->CreateSession(context, request).ok());
    }
    return absl::OkStatus();
  };
  const auto late = Create(request);
  EXPECT_EQ(ReasonOf(late.status()), reason::kStoreUnavailable);
  store->fault = nullptr;
  CallContext context;
  const auto theirs = (*other)->CreateSession(context, request);
  const auto ours = Create(request);
  ASSERT_TRUE(ours.ok()) << ours.status();
  EXPECT_EQ(ours->name(), theirs->name());
  EXPECT_EQ(NumSessions(), 1);
}

TEST_F(RequestIdTest, WhatATurnDidNotCommitIsNoAnswerAfterARestart) {
  Start();
  Create("s");
  auto turn = Request("s", "abc", 60000);
  turn.set_commit_policy(v1::GenerateRequest::DISCARD);
  turn.set_request_id(MakeUid());
  CallContext context;
  CollectingSink sink, again;
  sink.on_event = [&](const v1::GenerateResponse&) {
    context.RequestCancel(Cancel::kClient);
    return true;
  };
  EXPECT_EQ(core->Generate(context, turn, sink).code(), absl::StatusCode::kCancelled);
  Start();
  turn.set_max_output_tokens(60000);
  again.on_event = [&](const v1::GenerateResponse&) { return again.tokens.size() < 3; };
  EXPECT_EQ(Generate(turn, again).code(), absl::StatusCode::kCancelled);
  EXPECT_GE(again.tokens.size(), 3u);
}

TEST_F(RequestIdTest, MarksLeaveTheStoreWhenTheyExpire) {
  for (int i = 0; i < 600; ++i) {
    memstore::Transaction transaction;
    transaction.puts.push_back({.key = {"default", "requests/" + MakeUid()},
                                .value = "",
                                .expire_time = absl::Now() - absl::Seconds(1)});
    ASSERT_TRUE(store->store->Commit(transaction).ok());
  }
  Start();
  EXPECT_TRUE(WaitFor([&] { return store->store->Stats()->records == 0; }));
  // One that has not expired stays.
  ASSERT_TRUE(Create(CreateRequest()).ok());
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(store->store->Stats()->records, 2);
}

}  // namespace
}  // namespace mneme::server
