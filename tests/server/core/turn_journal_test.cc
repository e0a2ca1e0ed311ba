// Turns that are interrupted by the death of their process, and what its successor makes of them.
// The store refuses everything from the moment of death on.
#include <algorithm>
#include <random>
#include <thread>

#include "client/crc32c.h"
#include "server/core/generation_table.h"
#include "server/core/session_names.h"
#include "server/core/storage.pb.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;
using Cancel = CallContext::Cancel;

template <typename Condition>
bool WaitFor(Condition condition) {
  for (int i = 0; i < 20000 && !condition(); ++i) std::this_thread::sleep_for(milliseconds(1));
  return condition();
}

class TurnJournalTest : public CoreTest {
 protected:
  TurnJournalTest() { config.limits.max_unsent_tokens = 1; }  // one token is one event

  static v1::GenerateRequest Continue(v1::GenerateRequest request) {
    request.set_on_disconnect(v1::GenerateRequest::CONTINUE);
    return request;
  }
  void Die() {
    store->fault = [](const std::string&) { return absl::UnavailableError("dead"); };
  }
  void Restart() {
    core.reset();
    store->fault = nullptr;
    Start();
  }
  // The process dies when `events` events of the turn were read.
  CollectingSink Interrupt(const v1::GenerateRequest& request, int events) {
    CallContext context;
    CollectingSink sink;
    sink.on_event = [&](const v1::GenerateResponse&) {
      if (sink.count == events) {
        Die();
        context.RequestCancel(Cancel::kClient);
      }
      return true;
    };
    EXPECT_EQ(core->Generate(context, request, sink).code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(sink.count, events);
    Restart();
    sink.on_event = nullptr;
    return sink;
  }
  static v1::ResumeGenerationRequest Behind(const CollectingSink& sink) {
    v1::ResumeGenerationRequest request;
    request.set_resume_token(sink.started.resume_token());
    request.set_after_sequence(sink.count);
    auto& received = *request.mutable_received();
    received.set_tokens(static_cast<int64_t>(sink.tokens.size()));
    received.set_text_bytes(static_cast<int64_t>(sink.text.size()));
    uint32_t crc = 0;
    for (const int32_t id : sink.tokens) crc = client::ExtendCrc32c(crc, id);
    received.set_token_ids_crc32c(crc);
    return request;
  }
  absl::Status Resume(const v1::ResumeGenerationRequest& request, CollectingSink& sink) {
    CallContext context;
    return core->ResumeGeneration(context, request, sink);
  }
  absl::Status Resume(CollectingSink& sink) { return Resume(Behind(sink), sink); }

  std::vector<memstore::ListedRecord> Records(const std::string& prefix) {
    return *store->store->List({.realm = "default", .prefix = prefix});
  }
  int JournalledTokens() {
    int count = 0;
    for (const auto& item : Records("turns/s/0")) {
      storage::StoredOutput output;
      EXPECT_TRUE(output.ParseFromString(item.record.value));
      count += output.token_ids_size();
    }
    return count;
  }
  int NumRecords() {
    int count = 0;
    for (const char* prefix : {"turns/", "generations/", "ended/"}) {
      count += static_cast<int>(Records(prefix).size());
    }
    return count;
  }
};

TEST_F(TurnJournalTest, KilledBehindAnyTokenTheTextIsTheUncutOne) {
  Start();
  Create("whole");
  constexpr int kTokens = 110;
  const auto uncut = MustGenerate(Request("whole", "Once upon a time", kTokens));
  int64_t recomputed = 0, ahead = 0;
  std::string id;
  for (int events = 1; events < uncut.count; events += events < 4 ? 1 : 9) {
    SCOPED_TRACE(events);
    id = absl::StrCat("s", events);
    Create(id);
    CollectingSink sink = Interrupt(Continue(Request(id, "Once upon a time", kTokens)), events);
    EXPECT_EQ(Get(id).version(), 0);
    EXPECT_EQ(Get(id).state(), v1::Session::ACTIVE);
    const auto had = static_cast<int64_t>(sink.tokens.size());
    const absl::Status status = Resume(sink);  // the sink checks the sequence
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(sink.tokens, uncut.tokens);
    EXPECT_EQ(sink.text, uncut.text);
    ASSERT_TRUE(sink.has_final);
    EXPECT_TRUE(sink.final.committed());
    EXPECT_EQ(sink.final.version(), 1);
    EXPECT_EQ(sink.final.position_tokens(), uncut.final.position_tokens());
    EXPECT_EQ(sink.final.finish_reason(), uncut.final.finish_reason());
    EXPECT_EQ(sink.final.usage().input_tokens(), uncut.final.usage().input_tokens());
    EXPECT_EQ(sink.final.usage().output_tokens(), kTokens);
    EXPECT_EQ(Get(id).version(), 1);
    recomputed += sink.final.usage().recomputed_tokens();
    ahead += std::max<int64_t>(0, had - sink.final.usage().recomputed_tokens());
  }
  EXPECT_GT(recomputed, 0) << "the journal never had anything";
  EXPECT_GT(ahead, 0) << "no client had more than the journal";
  EXPECT_EQ(Say(id, " and").tokens, Say("whole", " and").tokens);
}

TEST_F(TurnJournalTest, WhateverItWasAskedForItGoesOnTheSame) {
  Start();
  Create("reference");
  const auto plain = MustGenerate(Request("reference", "Once upon a time", 80));
  std::vector<v1::GenerateRequest> requests;
  const auto add = [&](const std::function<void(v1::GenerateRequest&)>& edit) {
    edit(requests.emplace_back(Request("s", "Once upon a time", 80)));
  };
  add([](auto& r) { r.set_logprobs(3); });
  add([](auto& r) {
    r.mutable_sampling()->set_temperature(1);
    r.mutable_sampling()->set_seed(7);
    r.mutable_sampling()->set_repetition_penalty(1.3F);
    r.mutable_sampling()->set_presence_penalty(0.5F);
  });
  // A stop that begins within what is read and ends behind it.
  ASSERT_GT(plain.text.size(), 60u);
  for (const auto handling : {v1::GenerateRequest::KEEP, v1::GenerateRequest::DROP}) {
    add([&](auto& r) {
      r.add_stop_sequences(plain.text.substr(plain.text.size() * 3 / 4, 7));
      r.set_end_handling(handling);
    });
  }
  // Characters of several tokens.
  add([](auto& r) {
    r.set_text("日本");
    for (int id = 0xE0; id < 0xF0; ++id) (*r.mutable_sampling()->mutable_logit_bias())[id] = 3;
    r.mutable_sampling()->set_temperature(1);
    r.mutable_sampling()->set_seed(3);
  });
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    auto request = requests[i];
    request.set_session(Name(absl::StrCat("whole", i)));
    Create(absl::StrCat("whole", i));
    const auto uncut = MustGenerate(request);
    for (const int events : {2, uncut.count / 2, uncut.count - 2}) {
      const std::string id = absl::StrCat("s", i, "-", events);
      Create(id);
      request.set_session(Name(id));
      CollectingSink sink = Interrupt(Continue(request), events);
      const absl::Status status = Resume(sink);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(sink.tokens, uncut.tokens) << events;
      EXPECT_EQ(sink.text, uncut.text) << events;
      EXPECT_EQ(sink.final.finish_reason(), uncut.final.finish_reason());
      EXPECT_EQ(sink.final.held_bytes(), uncut.final.held_bytes());
      EXPECT_EQ(Get(id).position_tokens(), uncut.final.position_tokens());
      ASSERT_EQ(sink.logprobs.size(), uncut.logprobs.size());
      for (size_t k = 0; k < uncut.logprobs.size(); ++k) {
        EXPECT_EQ(sink.logprobs[k].SerializeAsString(), uncut.logprobs[k].SerializeAsString());
      }
    }
  }
}

TEST_F(TurnJournalTest, WhatWasLeftOpenStaysAsItWas) {
  Start();
  Create("s");
  Create("again");
  v1::GenerateRequest request = Continue(Request("s", "Once upon a time", 60));
  request.clear_sampling();  // a random seed, and the model's own settings
  CollectingSink sink = Interrupt(request, 20);
  const uint64_t seed = sink.started.seed();
  ASSERT_TRUE(Resume(sink).ok());
  request.set_session(Name("again"));
  request.mutable_sampling()->set_seed(seed);
  EXPECT_EQ(sink.tokens, MustGenerate(request).tokens);
}

TEST_F(TurnJournalTest, KilledAgainAndAgain) {
  Start();
  Create("whole");
  Create("s");
  const auto uncut = MustGenerate(Request("whole", "abc", 60));
  CollectingSink sink = Interrupt(Continue(Request("s", "abc", 60)), 5);
  while (sink.tokens.size() < 50) {
    CallContext context;
    const size_t until = sink.tokens.size() + 10;
    sink.on_event = [&](const v1::GenerateResponse&) {
      if (sink.tokens.size() >= until) {
        Die();
        context.RequestCancel(Cancel::kClient);
      }
      return true;
    };
    EXPECT_EQ(core->ResumeGeneration(context, Behind(sink), sink).code(),
              absl::StatusCode::kCancelled);
    Restart();
  }
  sink.on_event = nullptr;
  ASSERT_TRUE(Resume(sink).ok());
  EXPECT_EQ(sink.tokens, uncut.tokens);
  EXPECT_EQ(sink.text, uncut.text);
  EXPECT_EQ(Get("s").version(), 1);
}

TEST_F(TurnJournalTest, ALongTurnHasSeveralRecords) {
  config.limits.max_unsent_tokens = 64;
  Start();
  Create("whole");
  Create("s");
  const auto uncut = MustGenerate(Request("whole", "abc", 2500));
  CallContext context;
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse&) {
    if (sink.tokens.size() < 2200) return true;
    EXPECT_TRUE(WaitFor([&] { return JournalledTokens() > 2100; }));
    EXPECT_EQ(Records("turns/s/0").size(), 3u);
    Die();
    context.RequestCancel(Cancel::kClient);
    return true;
  };
  EXPECT_FALSE(core->Generate(context, Continue(Request("s", "abc", 2500)), sink).ok());
  Restart();
  sink.on_event = nullptr;
  ASSERT_TRUE(Resume(sink).ok());
  EXPECT_EQ(sink.tokens, uncut.tokens);
  EXPECT_EQ(sink.text, uncut.text);
  EXPECT_GT(sink.final.usage().recomputed_tokens(), 2100);
  EXPECT_EQ(Records("turns/").size(), 0u);
}

TEST_F(TurnJournalTest, TheOutputOfACommittedTurnIsKeptUpToAMebibyte) {
  config.limits.max_unsent_tokens = 64;
  Start();
  Create("s");
  auto request = Continue(Request("s", "abc", 7000));
  request.set_logprobs(20);
  EXPECT_EQ(MustGenerate(request).logprobs.size(), 7000u);
  EXPECT_EQ(NumRecords(), 0);
  EXPECT_EQ(Get("s").version(), 1);
}

TEST_F(TurnJournalTest, WhatWasCommittedUnheardIsHeard) {
  config.limits.max_unsent_tokens = 1024;
  Start();
  Create("s");
  CallContext context;
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse&) {
    if (sink.count == 3) context.RequestCancel(Cancel::kClient);
    return true;
  };
  EXPECT_FALSE(core->Generate(context, Continue(Request("s", "abc", 300)), sink).ok());
  ASSERT_TRUE(WaitFor([&] { return Get("s").version() == 1; }));
  const auto whole = [&] {
    v1::ResumeGenerationRequest request;
    request.set_generation(sink.started.generation());
    CollectingSink all;
    EXPECT_TRUE(Resume(request, all).ok());
    return all;
  }();
  Restart();
  sink.on_event = nullptr;
  const absl::Status status = Resume(sink);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(sink.tokens, whole.tokens);
  EXPECT_EQ(sink.text, whole.text);
  EXPECT_EQ(sink.final.version(), 1);
  EXPECT_EQ(sink.final.position_tokens(), Get("s").position_tokens());
  EXPECT_EQ(Get("s").version(), 1);
  // Another turn does not take it away.
  Say("s", " and");
  Restart();
  CollectingSink again;
  v1::ResumeGenerationRequest request;
  request.set_resume_token(sink.started.resume_token());
  ASSERT_TRUE(Resume(request, again).ok());
  EXPECT_EQ(again.tokens, whole.tokens);
}

TEST_F(TurnJournalTest, ARequestThatIsSentAgainJoins) {
  Start();
  Create("whole");
  Create("s");
  const auto uncut = MustGenerate(Request("whole", "abc", 50));
  auto request = Continue(Request("s", "abc", 50));
  request.set_request_id(MakeUid());
  const CollectingSink cut = Interrupt(request, 40);
  auto other = request;
  other.set_text("abd");
  CollectingSink none, sink, once_more;
  EXPECT_EQ(ReasonOf(Generate(other, none)), reason::kRequestIdReused);
  const absl::Status status = Generate(request, sink);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(sink.started.generation(), cut.started.generation());
  EXPECT_EQ(sink.tokens, uncut.tokens);
  EXPECT_EQ(sink.text, uncut.text);
  EXPECT_EQ(Get("s").version(), 1);
  Restart();  // done, and known to be done
  ASSERT_TRUE(Generate(request, once_more).ok());
  EXPECT_EQ(once_more.tokens, uncut.tokens);
  EXPECT_EQ(Get("s").version(), 1);
}

TEST_F(TurnJournalTest, ADrainLeavesItToItsReader) {
  Start();
  Create("whole");
  Create("s");
  const auto uncut = MustGenerate(Request("whole", "abc", 60));
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse&) {
    if (sink.tokens.size() == 20) {
      core->StartDrain();
      core->PreemptAll();
    }
    return true;
  };
  EXPECT_EQ(ReasonOf(Generate(Continue(Request("s", "abc", 60)), sink)), reason::kDraining);
  sink.on_event = nullptr;
  EXPECT_EQ(ReasonOf(Resume(sink)), reason::kDraining) << "not here again";
  EXPECT_EQ(JournalledTokens(), static_cast<int>(sink.tokens.size()));
  Restart();
  ASSERT_TRUE(Resume(sink).ok());
  EXPECT_EQ(sink.tokens, uncut.tokens);
  EXPECT_EQ(sink.text, uncut.text);
  EXPECT_EQ(Get("s").version(), 1);
}

TEST_F(TurnJournalTest, AnotherTurnSettlesIt) {
  Start();
  Create("s");
  CollectingSink sink = Interrupt(Continue(Request("s", "abc", 60)), 40);
  EXPECT_GT(Records("turns/").size(), 0u);
  EXPECT_EQ(Get("s").state(), v1::Session::ACTIVE);
  const auto next = Say("s", "def", 4);
  EXPECT_EQ(next.final.version(), 1);
  EXPECT_EQ(NumRecords(), 0);
  const int count = sink.count;
  EXPECT_EQ(ReasonOf(Resume(sink)), reason::kResumeExpired);
  EXPECT_EQ(sink.count, count);
  EXPECT_EQ(Get("s").version(), 1);
}

// Whatever else has changed the session: it is not what the turn went on from.
TEST_F(TurnJournalTest, AChangedSessionSettlesIt) {
  Start();
  Create("s");
  Say("s", "abc", 8);
  CollectingSink sink = Interrupt(Continue(Request("s", "abc", 60)), 40);
  CallContext context;
  v1::RewindSessionRequest rewind;
  rewind.set_name(Name("s"));
  rewind.set_position_tokens(3);
  ASSERT_TRUE(core->RewindSession(context, rewind).ok());
  EXPECT_EQ(ReasonOf(Resume(sink)), reason::kResumeExpired);
  EXPECT_EQ(Get("s").version(), 2);
}

TEST_F(TurnJournalTest, WithoutAResumeItExpires) {
  Start();
  Create("s");
  auto request = Continue(Request("s", "abc", 60));
  request.mutable_resume_window()->set_nanos(500'000'000);
  CollectingSink sink = Interrupt(request, 40);
  EXPECT_TRUE(WaitFor([&] { return NumRecords() == 0; }));
  EXPECT_EQ(ReasonOf(Resume(sink)), reason::kResumeExpired);
  EXPECT_EQ(Get("s").version(), 0);
  // The output of a turn that was committed as well.
  request.set_max_output_tokens(3);
  MustGenerate(request);
  EXPECT_EQ(Records("ended/").size(), 1u);
  EXPECT_TRUE(WaitFor([&] { return NumRecords() == 0; }));
}

TEST_F(TurnJournalTest, ATurnThatRunsDoesNotExpire) {
  Start();
  Create("s");
  auto request = Continue(Request("s", "abc", 30));
  request.mutable_resume_window()->set_nanos(600'000'000);
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse&) {
    // Nothing new for longer than the window.
    if (sink.count == 10) std::this_thread::sleep_for(milliseconds(1500));
    return sink.count != 12 || !Records("turns/").empty();
  };
  EXPECT_TRUE(Generate(request, sink).ok());
  EXPECT_EQ(Records("ended/").size(), 1u);
}

TEST_F(TurnJournalTest, WhatNobodyMayComeBackToHasNone) {
  Start();
  Create("s");
  for (const auto& request :
       {Request("s", "abc", 50), Request("", "abc", 50), Continue(Request("", "abc", 50))}) {
    CollectingSink sink;
    sink.on_event = [&](const v1::GenerateResponse&) {
      EXPECT_EQ(NumRecords(), 0);
      return true;
    };
    EXPECT_TRUE(Generate(request, sink).ok());
  }
  CollectingSink sink = Interrupt(Continue(Request("", "abc", 50)), 30);
  EXPECT_EQ(ReasonOf(Resume(sink)), reason::kResumeExpired);
}

TEST_F(TurnJournalTest, ATurnThatEndsTakesItAlong) {
  Start();
  Create("s");
  CollectingSink cancelled, failed;
  auto request = Continue(Request("s", "abc", 60000));
  request.set_commit_policy(v1::GenerateRequest::DISCARD);
  cancelled.on_event = [&](const v1::GenerateResponse&) {
    if (cancelled.count == 40) {
      EXPECT_GT(NumRecords(), 0);
      CallContext context;
      v1::CancelGenerationRequest cancel;
      cancel.set_name(cancelled.started.generation());
      EXPECT_TRUE(core->CancelGeneration(context, cancel).ok());
    }
    return true;
  };
  EXPECT_TRUE(Generate(request, cancelled).ok());
  EXPECT_EQ(cancelled.final.finish_reason(), v1::CANCELLED);
  EXPECT_EQ(NumRecords(), 0);

  MustGenerate(Continue(Request("s", "abc", 3)));
  EXPECT_EQ(Records("turns/").size(), 0u);
  EXPECT_EQ(Records("ended/").size(), 1u);
  CallContext context;
  v1::DeleteSessionRequest purge;
  purge.set_name(Name("s"));
  purge.set_purge(true);
  ASSERT_TRUE(core->DeleteSession(context, purge).ok());
  EXPECT_EQ(Records("ended/").size(), 0u);
}

TEST_F(TurnJournalTest, APurgedSessionTakesItAlong) {
  Start();
  Create("s");
  CollectingSink sink = Interrupt(Continue(Request("s", "abc", 60)), 40);
  EXPECT_GT(Records("turns/").size(), 1u);
  CallContext context;
  v1::DeleteSessionRequest purge;
  purge.set_name(Name("s"));
  purge.set_purge(true);
  ASSERT_TRUE(core->DeleteSession(context, purge).ok());
  EXPECT_EQ(Records("turns/").size(), 0u);
  Create("s");
  EXPECT_EQ(ReasonOf(Resume(sink)), reason::kResumeExpired);
}

TEST_F(TurnJournalTest, AStoreThatFailsForAWhileIsMadeUpFor) {
  Start();
  Create("whole");
  Create("s");
  const auto uncut = MustGenerate(Request("whole", "abc", 140));
  std::atomic<int> fail = 0;
  store->fault = [&](const std::string& op) {
    return op == "commit" && fail.exchange(0) != 0 ? absl::UnavailableError("away")
                                                   : absl::OkStatus();
  };
  CallContext context;
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse&) {
    if (sink.count == 20 || sink.count == 70) fail = 1;
    if (sink.count == 130) {
      EXPECT_TRUE(WaitFor([&] { return JournalledTokens() > 100; }));
      EXPECT_EQ(fail, 0);
      Die();
      context.RequestCancel(Cancel::kClient);
    }
    return true;
  };
  EXPECT_FALSE(core->Generate(context, Continue(Request("s", "abc", 140)), sink).ok());
  Restart();
  sink.on_event = nullptr;
  ASSERT_TRUE(Resume(sink).ok());
  EXPECT_EQ(sink.tokens, uncut.tokens);
  EXPECT_GT(sink.final.usage().recomputed_tokens(), 100);
}

TEST_F(TurnJournalTest, AReaderWhoHasSomethingElseIsTold) {
  Start();
  Create("whole");
  Create("s");
  const auto uncut = MustGenerate(Request("whole", "abc", 40));
  CollectingSink sink = Interrupt(Continue(Request("s", "abc", 40)), 20);
  auto request = Behind(sink);
  CollectingSink none;
  request.mutable_received()->set_token_ids_crc32c(1);
  EXPECT_EQ(ReasonOf(Resume(request, none)), reason::kStreamDiverged);
  request.mutable_received()->set_tokens(1000);
  EXPECT_EQ(ReasonOf(Resume(request, none)), reason::kStreamDiverged);
  request.clear_received();
  EXPECT_EQ(BadFields(Resume(request, none)), std::vector<std::string>{"received"});
  EXPECT_EQ(none.count, 0);
  // From the beginning nothing is needed, and the turn is done once.
  request.set_after_sequence(0);
  ASSERT_TRUE(Resume(request, none).ok());
  EXPECT_EQ(none.tokens, uncut.tokens);
  EXPECT_EQ(none.final.version(), 1);
}

// A server that computes otherwise says what was stored, and then something else than what was
// heard.
TEST_F(TurnJournalTest, AServerOfOtherNumericsIsFoundOut) {
  Start();
  const auto turn = [](const std::string& id) {
    auto request = Request(id, "Once upon a time", 60);
    request.mutable_sampling()->set_temperature(2);
    request.mutable_sampling()->set_seed(5);
    return request;
  };
  Create("s");
  CallContext context;
  CollectingSink sink;
  size_t stored = 0;
  sink.on_event = [&](const v1::GenerateResponse&) {
    if (sink.tokens.size() == 35) {
      EXPECT_TRUE(WaitFor([&] { return JournalledTokens() > 0; }));
      stored = static_cast<size_t>(JournalledTokens());
      store->fault = [](const std::string& op) {  // what comes is not written any more
        return op == "commit" ? absl::UnavailableError("away") : absl::OkStatus();
      };
    }
    if (sink.tokens.size() == 58) context.RequestCancel(Cancel::kClient);
    return true;
  };
  EXPECT_FALSE(core->Generate(context, Continue(turn("s")), sink).ok());
  config.engine.contract = "f32";
  Restart();
  EXPECT_EQ(ReasonOf(Resume(sink)), reason::kStreamDiverged);
  CollectingSink again;
  v1::ResumeGenerationRequest from_the_first;
  from_the_first.set_resume_token(sink.started.resume_token());
  ASSERT_TRUE(Resume(from_the_first, again).ok());
  ASSERT_EQ(again.tokens.size(), 60u);
  ASSERT_GE(stored, 32u);
  EXPECT_TRUE(std::equal(again.tokens.begin(), again.tokens.begin() + 32, sink.tokens.begin()));
  EXPECT_FALSE(std::equal(sink.tokens.begin(), sink.tokens.end(), again.tokens.begin()));
}

TEST_F(TurnJournalTest, SeveralThatResumeGoOnWithOneTurn) {
  Start();
  Create("s");
  const CollectingSink cut = Interrupt(Continue(Request("s", "abc", 200)), 40);
  std::vector<std::thread> readers;
  std::atomic<int> done = 0, taken_over = 0;
  for (int i = 0; i < 8; ++i) {
    readers.emplace_back([&] {
      CollectingSink sink;
      v1::ResumeGenerationRequest request;
      request.set_resume_token(cut.started.resume_token());
      const absl::Status status = Resume(request, sink);
      if (status.ok()) {
        EXPECT_EQ(sink.final.version(), 1);
        ++done;
      } else {
        EXPECT_EQ(ReasonOf(status), reason::kStreamTakenOver) << status;
        ++taken_over;
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_GE(done, 1);
  EXPECT_EQ(done + taken_over, 8);
  EXPECT_EQ(Get("s").version(), 1);
}

// Whatever stands in the records: an error or a turn, and the session goes on.
TEST_F(TurnJournalTest, DamagedRecordsAreNoMoreThanAnError) {
  config.limits.max_output_tokens = 64;
  Start();
  Create("s");
  auto request = Continue(Request("s", "abc", 45));
  request.mutable_resume_window()->set_seconds(600);
  const CollectingSink sink = Interrupt(request, 40);
  const auto all = *store->store->List({.realm = "default"});
  std::mt19937 random(1);
  int failed = 0, damaged = 0;
  for (int round = 0; round < 150; ++round) {
    SCOPED_TRACE(round);
    memstore::Transaction transaction;
    std::vector<memstore::Put*> journal;
    for (const auto& [name, record] : all) {
      transaction.puts.push_back(
          {.key = {"default", name}, .value = record.value, .expire_time = record.expire_time});
    }
    for (memstore::Put& put : transaction.puts) {
      const bool is_journal =
          put.key.name.starts_with("turns/") || put.key.name.starts_with("generations/");
      if (is_journal) journal.push_back(&put);
    }
    ASSERT_EQ(journal.size(), 3u);
    std::string& value = journal[random() % journal.size()]->value;
    switch (random() % 4) {
      case 0:
        value.resize(random() % value.size());
        break;
      case 1:
        value[random() % value.size()] = static_cast<char>(random());
        break;
      case 2:
        value.append(std::string(value));
        break;
      case 3:
        for (char& byte : value) byte = static_cast<char>(random());
        break;
    }
    core.reset();
    store->store = memstore::CreateMemoryStore();
    ASSERT_TRUE(store->store->Commit(transaction).ok());
    Start();
    CollectingSink rest;
    v1::ResumeGenerationRequest resume;
    resume.set_resume_token(sink.started.resume_token());
    if (const absl::Status status = Resume(resume, rest); !status.ok()) {
      ++failed;
      damaged += ReasonOf(status) == reason::kStateCorrupt;
      EXPECT_FALSE(ReasonOf(status).empty()) << status;
      EXPECT_NE(ReasonOf(status), reason::kInternal) << status;
    }
    const int64_t version = Get("s").version();
    EXPECT_EQ(version, rest.has_final ? 1 : 0);
    EXPECT_EQ(Say("s", "abc", 2).final.version(), version + 1);
    EXPECT_EQ(Records("turns/").size(), 0u);
  }
  EXPECT_GT(damaged, 20);
  EXPECT_LT(failed, 150) << "nothing was left that could be gone on with";
}

}  // namespace
}  // namespace mneme::server
