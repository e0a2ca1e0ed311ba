// Turns: what they return, what they leave behind, and that a restart changes nothing.
#include <atomic>
#include <chrono>
#include <thread>

#include "engine/core/utf8.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

using ::testing::ElementsAre;

class TurnTest : public CoreTest {};

TEST_F(TurnTest, CommitsBeforeFinal) {
  Start();
  Create("s");
  const auto turn = Say("s", "hello there", 8);
  EXPECT_EQ(turn.tokens.size(), 8u);
  EXPECT_TRUE(engine::IsValidUtf8(turn.text));
  EXPECT_TRUE(turn.final.committed());
  EXPECT_EQ(turn.final.version(), 1);
  EXPECT_EQ(turn.final.finish_reason(), v1::MAX_TOKENS);
  const auto& usage = turn.final.usage();
  EXPECT_EQ(usage.input_tokens(), turn.started.input_tokens());
  EXPECT_EQ(usage.output_tokens(), 8);
  EXPECT_EQ(usage.recomputed_tokens(), 0);
  EXPECT_EQ(turn.final.position_tokens(), usage.input_tokens() + 8);
  const v1::Session session = Get("s");
  EXPECT_EQ(session.version(), 1);
  EXPECT_EQ(session.position_tokens(), turn.final.position_tokens());
  EXPECT_EQ(session.state(), v1::Session::ACTIVE);
  EXPECT_GT(session.stored_bytes(), 0);
  EXPECT_EQ(session.residency(), v1::Session::HOST);
}

TEST_F(TurnTest, RestartContinuesBitForBit) {
  Start();
  Create("never-stopped");
  Create("stopped");
  // Sampled, with seeds: any difference in the logits would show.
  const auto turn = [&](const char* id, const char* text, uint64_t seed) {
    auto request = Request(id, text, 20);
    request.mutable_sampling()->set_temperature(1.2f);
    request.mutable_sampling()->set_seed(seed);
    request.set_logprobs(1);
    return MustGenerate(request);
  };
  std::vector<CollectingSink> expected;
  const char* texts[] = {"one two", "three", "", "four five six seven eight", ""};
  for (int i = 0; i < 5; ++i) expected.push_back(turn("never-stopped", texts[i], i));
  for (int i = 0; i < 5; ++i) {
    Start();  // everything in memory is gone
    EXPECT_EQ(Get("stopped").residency(), v1::Session::STORE);
    const auto got = turn("stopped", texts[i], i);
    EXPECT_EQ(got.tokens, expected[i].tokens) << "turn " << i;
    EXPECT_EQ(got.text, expected[i].text);
    EXPECT_EQ(got.final.usage().recomputed_tokens(), 0);
    ASSERT_EQ(got.logprobs.size(), expected[i].logprobs.size());
    for (size_t j = 0; j < got.logprobs.size(); ++j) {
      EXPECT_EQ(got.logprobs[j].logprob(), expected[i].logprobs[j].logprob());
    }
  }
}

TEST_F(TurnTest, SplittingATurnChangesNothing) {
  Start();
  Create("one");
  Create("two");
  const auto whole = Say("one", "some words to begin with", 16);
  auto first = Say("two", "some words to begin with", 7);
  const auto second = Say("two", "", 9);
  first.tokens.insert(first.tokens.end(), second.tokens.begin(), second.tokens.end());
  EXPECT_EQ(first.tokens, whole.tokens);
  EXPECT_EQ(second.final.usage().input_tokens(), 0);
  // A stateless completion is the same model.
  const auto stateless = Say("", "some words to begin with", 16);
  EXPECT_EQ(stateless.tokens, whole.tokens);
  EXPECT_FALSE(stateless.final.committed());
}

TEST_F(TurnTest, OnlyReading) {
  Start();
  Create("s");
  const auto read = Say("s", "words that are read", 0);
  EXPECT_TRUE(read.tokens.empty());
  EXPECT_EQ(read.final.finish_reason(), v1::MAX_TOKENS);
  EXPECT_EQ(read.final.position_tokens(), read.final.usage().input_tokens());
  EXPECT_EQ(Say("s", "", 5).tokens, Say("", "words that are read", 5).tokens);
}

TEST_F(TurnTest, SlidesOnBeyondTheWindow) {
  config.engine.window_tokens = 32;
  Start();
  Create("a");
  Create("b");
  const auto whole = Say("a", "one two three four five six", 200);
  std::vector<int32_t> tokens = Say("b", "one two three four five six", 90).tokens;
  Start();
  const auto rest = Say("b", "", 110);
  tokens.insert(tokens.end(), rest.tokens.begin(), rest.tokens.end());
  EXPECT_EQ(tokens, whole.tokens);
}

// The text of a token as it stands in the output of `turn`.
TEST_F(TurnTest, StopSequenceNeverLeaks) {
  Start();
  const auto free = Say("", "tell me", 40);
  ASSERT_GT(free.text.size(), 12u);
  // Cut at character boundaries in the middle of the text.
  size_t begin = free.text.size() / 2;
  while (begin < free.text.size() && (free.text[begin] & 0xC0) == 0x80) ++begin;
  size_t end = std::min(free.text.size(), begin + 6);
  while (end < free.text.size() && (free.text[end] & 0xC0) == 0x80) ++end;
  const std::string stop = free.text.substr(begin, end - begin);
  const std::string expected = free.text.substr(0, free.text.find(stop));

  for (const bool drop : {false, true}) {
    const std::string id = drop ? "drop" : "keep";
    Create(id);
    auto request = Request(id, "tell me", 40);
    request.add_stop_sequences(stop);
    request.set_end_handling(drop ? v1::GenerateRequest::DROP : v1::GenerateRequest::KEEP);
    CollectingSink sink;
    sink.on_event = [&](const v1::GenerateResponse&) {
      EXPECT_TRUE(expected.starts_with(sink.text)) << sink.text;
      return true;
    };
    ASSERT_TRUE(Generate(request, sink).ok());
    EXPECT_EQ(sink.text, expected);
    EXPECT_EQ(sink.final.finish_reason(), v1::STOP_SEQUENCE);
    EXPECT_EQ(sink.final.position_tokens(),
              sink.final.usage().input_tokens() + static_cast<int64_t>(sink.tokens.size()));
    ASSERT_LE(sink.tokens.size(), free.tokens.size());
    EXPECT_TRUE(std::equal(sink.tokens.begin(), sink.tokens.end(), free.tokens.begin()));
    // What comes next is what follows exactly these tokens.
    const auto next = Say(id, "", 6);
    auto prefix = Request("", "tell me", static_cast<int>(sink.tokens.size()) + 6);
    const auto whole = MustGenerate(prefix);
    EXPECT_EQ(next.tokens,
              std::vector<int32_t>(whole.tokens.begin() + sink.tokens.size(), whole.tokens.end()));
    if (drop) {
      // DROP: shorter than KEEP by what overlaps the stop.
      std::string kept;
      CallContext context;
      v1::DetokenizeRequest detokenize;
      for (int32_t t : sink.tokens) detokenize.add_token_ids(t);
      auto text = core->Detokenize(context, detokenize);
      ASSERT_TRUE(text.ok());
      EXPECT_EQ(text->text().find(stop), std::string::npos);
    }
  }
}

TEST_F(TurnTest, StopTokenKeepAndDrop) {
  Start();
  const auto free = Say("", "tell me", 20);
  const int32_t stop = free.tokens[10];
  const size_t at = std::find(free.tokens.begin(), free.tokens.end(), stop) - free.tokens.begin();
  for (const bool drop : {false, true}) {
    const std::string id = drop ? "drop" : "keep";
    Create(id);
    auto request = Request(id, "tell me", 20);
    request.add_stop_token_ids(stop);
    request.set_end_handling(drop ? v1::GenerateRequest::DROP : v1::GenerateRequest::KEEP);
    const auto turn = MustGenerate(request);
    EXPECT_EQ(turn.final.finish_reason(), v1::STOP_TOKEN);
    ASSERT_EQ(turn.tokens.size(), drop ? at : at + 1);
    EXPECT_EQ(turn.final.usage().recomputed_tokens(), 0);
    EXPECT_EQ(turn.final.position_tokens(),
              turn.final.usage().input_tokens() + static_cast<int64_t>(turn.tokens.size()));
    // With DROP the same token comes again, from the stored logits.
    EXPECT_EQ(Say(id, "", 1).tokens[0], free.tokens[turn.tokens.size()]);
  }
}

TEST_F(TurnTest, Logprobs) {
  Start();
  auto request = Request("", "abc", 5);
  request.set_logprobs(4);
  const auto turn = MustGenerate(request);
  ASSERT_EQ(turn.logprobs.size(), turn.tokens.size());
  for (size_t i = 0; i < turn.tokens.size(); ++i) {
    ASSERT_EQ(turn.logprobs[i].top_size(), 4);
    EXPECT_EQ(turn.logprobs[i].top(0).token_id(), turn.tokens[i]);  // greedy
    EXPECT_EQ(turn.logprobs[i].top(0).logprob(), turn.logprobs[i].logprob());
    EXPECT_LE(turn.logprobs[i].logprob(), 0);
  }
}

TEST_F(TurnTest, ScoreAgreesWithGenerate) {
  Start();
  Create("s");
  Say("s", "abc", 3);
  CallContext context;
  auto request = Request("", "abc", 6);
  request.set_logprobs(1);
  const auto turn = MustGenerate(request);
  v1::ScoreRequest score;
  score.set_session(Name("s"));
  for (int i = 3; i < 6; ++i) score.mutable_token_ids()->add_ids(turn.tokens[i]);
  score.set_logprobs(2);
  auto scored = core->Score(context, score);
  ASSERT_TRUE(scored.ok()) << scored.status();
  ASSERT_EQ(scored->logprobs_size(), 3);
  double total = 0;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(scored->logprobs(i).logprob(), turn.logprobs[3 + i].logprob());
    EXPECT_EQ(scored->logprobs(i).top_size(), 2);
    total += scored->logprobs(i).logprob();
  }
  EXPECT_DOUBLE_EQ(scored->total_logprob(), total);
  EXPECT_EQ(scored->unscored_tokens(), 0);
  EXPECT_EQ(Get("s").version(), 1);
  score.clear_session();
  scored = core->Score(context, score);
  ASSERT_TRUE(scored.ok());
  EXPECT_EQ(scored->unscored_tokens(), 1);
  EXPECT_EQ(scored->logprobs(0).logprob(), 0);
}

TEST_F(TurnTest, SeedIsEchoedAndReproduces) {
  Start();
  auto request = Request("", "abc", 12);
  request.mutable_sampling()->set_temperature(1.5);
  const auto first = MustGenerate(request);
  request.mutable_sampling()->set_seed(first.started.seed());
  EXPECT_EQ(MustGenerate(request).tokens, first.tokens);
}

TEST_F(TurnTest, CancelGenerationKeepsWhatWasEmitted) {
  Start();
  Create("s");
  const auto free = Say("", "go on", 200);
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse&) {
    if (sink.tokens.size() >= 5) {
      CallContext context;
      v1::CancelGenerationRequest cancel;
      cancel.set_name(sink.started.generation());
      EXPECT_TRUE(core->CancelGeneration(context, cancel).ok());
      EXPECT_TRUE(core->CancelGeneration(context, cancel).ok());
    }
    return true;
  };
  ASSERT_TRUE(Generate(Request("s", "go on", 60000), sink).ok());
  EXPECT_EQ(sink.final.finish_reason(), v1::CANCELLED);
  EXPECT_TRUE(sink.final.committed());
  EXPECT_EQ(sink.final.position_tokens(),
            sink.started.input_tokens() + static_cast<int64_t>(sink.tokens.size()));
  EXPECT_EQ(Get("s").position_tokens(), sink.final.position_tokens());
  const size_t n = std::min(sink.tokens.size(), free.tokens.size());
  EXPECT_TRUE(std::equal(sink.tokens.begin(), sink.tokens.begin() + n, free.tokens.begin()));
  // Still idempotent after it has ended.
  CallContext context;
  v1::CancelGenerationRequest cancel;
  cancel.set_name(sink.started.generation());
  EXPECT_TRUE(core->CancelGeneration(context, cancel).ok());
}

TEST_F(TurnTest, DiscardLeavesNoTrace) {
  Start();
  Create("s");
  Say("s", "abc", 4);
  const v1::Session before = Get("s");
  auto request = Request("s", "go on", 60000);
  request.set_commit_policy(v1::GenerateRequest::DISCARD);
  CallContext context;
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse&) {
    if (sink.tokens.size() >= 5) context.RequestCancel(CallContext::Cancel::kClient);
    return true;
  };
  EXPECT_EQ(core->Generate(context, request, sink).code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(sink.has_final);
  const v1::Session after = Get("s");
  EXPECT_EQ(after.version(), before.version());
  EXPECT_EQ(after.etag(), before.etag());
  const auto all = Say("", "abc", 9).tokens;
  EXPECT_EQ(Say("s", "", 5).tokens, std::vector<int32_t>(all.begin() + 4, all.end()));
}

TEST_F(TurnTest, DeadlineCommitsAndFails) {
  Start();
  Create("s");
  CallContext context;
  context.deadline = CallContext::Clock::now() + std::chrono::milliseconds(300);
  CollectingSink sink;
  const absl::Status status = core->Generate(context, Request("s", "go on", 60000), sink);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReasonOf(status), reason::kDeadlineExceeded);
  EXPECT_EQ(Get("s").version(), 1);
  // What came too late for the call can be read still.
  CallContext later;
  v1::ResumeGenerationRequest resume;
  resume.set_generation(sink.started.generation());
  resume.set_after_sequence(sink.count);
  EXPECT_TRUE(core->ResumeGeneration(later, resume, sink).ok());
  EXPECT_EQ(Get("s").position_tokens(),
            sink.started.input_tokens() + static_cast<int64_t>(sink.tokens.size()));
}

TEST_F(TurnTest, MaxDurationEndsWell) {
  Start();
  Create("s");
  auto request = Request("s", "go on", 60000);
  request.mutable_max_duration()->set_nanos(200'000'000);
  const auto turn = MustGenerate(request);
  EXPECT_EQ(turn.final.finish_reason(), v1::DURATION);
  EXPECT_TRUE(turn.final.committed());
}

TEST_F(TurnTest, PreemptEndsByTheCommitRule) {
  Start();
  Create("s");
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse&) {
    if (sink.tokens.size() >= 3) {
      core->StartDrain();
      core->PreemptAll();
    }
    return true;
  };
  ASSERT_TRUE(Generate(Request("s", "go on", 60000), sink).ok());
  EXPECT_EQ(sink.final.finish_reason(), v1::PREEMPTED);
  EXPECT_TRUE(sink.final.committed());
  EXPECT_EQ(core->RunningCalls(), 0);
  CollectingSink refused;
  const absl::Status status = Generate(Request("s", "again", 1), refused);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), reason::kDraining);
}

TEST_F(TurnTest, SlowReaderLeavesTheBatch) {
  config.limits.max_unsent_tokens = 8;
  Start();
  Create("slow");
  std::atomic<bool> other_done{false};
  CollectingSink slow;
  slow.on_event = [&](const v1::GenerateResponse& r) {
    if (r.has_delta()) {
      // A character that spans tokens releases them together.
      EXPECT_LE(r.delta().token_ids_size(), 8 + 4);
      while (!other_done) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  };
  std::thread reader([&] { EXPECT_TRUE(Generate(Request("slow", "abc", 100), slow).ok()); });
  const auto other = Say("", "abc", 100);
  other_done = true;
  reader.join();
  EXPECT_EQ(slow.tokens, other.tokens);
}

TEST_F(TurnTest, SlowConsumerEndsByTheCommitRule) {
  Start();
  Create("s");
  CallContext context;
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse&) {
    if (sink.tokens.size() < 4) return true;
    context.RequestCancel(CallContext::Cancel::kSlowConsumer);
    return false;
  };
  const absl::Status status = core->Generate(context, Request("s", "abc", 60000), sink);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), reason::kSlowConsumer);
  EXPECT_EQ(Get("s").version(), 1);
}

TEST_F(TurnTest, StoreFailureLeavesTheSessionAsItWas) {
  Start();
  Create("s");
  Say("s", "abc", 4);
  for (const auto& [error, code, reason] :
       {std::tuple{absl::UnavailableError("gone"), absl::StatusCode::kUnavailable,
                   reason::kStoreUnavailable},
        std::tuple{absl::ResourceExhaustedError("full"), absl::StatusCode::kUnavailable,
                   reason::kStoreFull}}) {
    store->fault = [&, e = error](const std::string& op) {
      return op == "commit" ? e : absl::OkStatus();
    };
    CollectingSink sink;
    const absl::Status status = Generate(Request("s", "more", 4), sink);
    store->fault = nullptr;
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(ReasonOf(status), reason);
    EXPECT_FALSE(sink.has_final);
    EXPECT_EQ(Get("s").version(), 1);
    EXPECT_EQ(Get("s").state(), v1::Session::ACTIVE);
  }
  // The failed turns left no trace in the state either.
  const auto all = Say("", "abc", 8).tokens;
  EXPECT_EQ(Say("s", "", 4).tokens, std::vector<int32_t>(all.begin() + 4, all.end()));
}

TEST_F(TurnTest, ACommitThatIsTriedAgainStillHasItsState) {
  Start();
  Create("s");
  std::atomic<int> commits = 0;
  store->fault = [&](const std::string& op) {
    return op == "commit" && commits++ == 0 ? absl::AbortedError("written meanwhile")
                                            : absl::OkStatus();
  };
  EXPECT_TRUE(Say("s", "abc", 4).final.committed());
  store->fault = nullptr;
  EXPECT_EQ(commits, 2);
  Start();  // what the store has is all that is left
  const auto all = Say("", "abc", 8).tokens;
  EXPECT_EQ(Say("s", "", 4).tokens, std::vector<int32_t>(all.begin() + 4, all.end()));
}

TEST_F(TurnTest, ModelsAreNamedByTheRuleOfAllResources) {
  for (const char* bad : {"", "Tiny", "tiny_1", "v1.0", "tiny-"}) {
    config.models[0].name = bad;
    const auto made = ServerCore::Create(config, std::make_unique<TestStore>(store));
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST_F(TurnTest, MessagesGoThroughTheChatTemplate) {
  Start();
  CallContext context;
  v1::GetModelRequest get;
  get.set_name("models/tiny");
  auto request = Request("", "", 4);
  auto* message = request.mutable_messages()->add_messages();
  message->set_role("user");
  message->set_content("hi");
  EXPECT_TRUE(core->GetModel(context, get)->has_chat_template());
  EXPECT_EQ(core->GetModel(context, get)->chat_template_problem(), "");
  CollectingSink sink;
  ASSERT_TRUE(Generate(request, sink).ok());
  EXPECT_GT(sink.started.input_tokens(), 1);

  // A model without one says so, and refuses messages with the reason.
  config.models[0].path = std::string(MNEME_TINY_DIR) + "/tiny-infini-linear";
  Start();
  auto model = core->GetModel(context, get);
  EXPECT_FALSE(model->has_chat_template());
  EXPECT_EQ(model->chat_template_problem(), "the checkpoint carries no chat template");
  CollectingSink none;
  const absl::Status status = Generate(request, none);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), reason::kNoChatTemplate);
  EXPECT_NE(status.message().find(model->chat_template_problem()), std::string::npos) << status;
}

void AddMessage(v1::Messages* messages, const char* role, const char* content) {
  v1::Message* message = messages->add_messages();
  message->set_role(role);
  message->set_content(content);
}

TEST_F(TurnTest, TheFinalMessageIsContinued) {
  Start();
  CallContext context;
  v1::TokenizeRequest tokenize;
  AddMessage(tokenize.mutable_messages(), "user", "hi");
  AddMessage(tokenize.mutable_messages(), "assistant", "Sure, ");
  tokenize.set_continue_final_message(true);
  const auto tokens = core->Tokenize(context, tokenize);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  std::string text;
  for (const std::string& piece : tokens->pieces()) text += piece;
  EXPECT_TRUE(text.ends_with("Sure, ")) << text;

  // The model reads exactly this, and its answer does not repeat it.
  auto ids = Request("", "", 6);
  *ids.mutable_token_ids()->mutable_ids() = tokens->token_ids();
  const auto expected = MustGenerate(ids);
  Create("s");
  for (const char* id : {"", "s"}) {
    auto request = Request(id, "", 6);
    *request.mutable_messages() = tokenize.messages();
    request.set_continue_final_message(true);
    const auto turn = MustGenerate(request);
    EXPECT_EQ(turn.started.input_tokens(), tokens->token_ids_size());
    EXPECT_EQ(turn.tokens, expected.tokens);
    EXPECT_EQ(turn.text, expected.text);
  }
}

TEST_F(TurnTest, WhatCannotBeContinuedIsRefused) {
  Start();
  Create("s");
  Say("s", "abc", 2);
  const auto refused = [&](v1::GenerateRequest request) {
    request.set_continue_final_message(true);
    CollectingSink sink;
    const absl::Status status = Generate(request, sink);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return BadFields(status);
  };
  EXPECT_THAT(refused(Request("", "abc", 1)), ElementsAre("continue_final_message"));
  EXPECT_THAT(refused(Request("s", "", 1)), ElementsAre("continue_final_message"));
  for (const auto& [role, content] : {std::pair{"user", "hi"}, std::pair{"assistant", " "}}) {
    auto request = Request("s", "", 1);
    AddMessage(request.mutable_messages(), role, content);
    EXPECT_THAT(refused(request), ElementsAre("messages"));
  }
  EXPECT_EQ(Get("s").version(), 1);

  CallContext context;
  v1::TokenizeRequest tokenize;
  tokenize.set_text("abc");
  tokenize.set_continue_final_message(true);
  EXPECT_THAT(BadFields(core->Tokenize(context, tokenize).status()),
              ElementsAre("continue_final_message"));
}

}  // namespace
}  // namespace mneme::server
