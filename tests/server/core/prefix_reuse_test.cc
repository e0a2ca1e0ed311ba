// A conversation that begins as another of its tenant did goes on from that one's state: it reads
// less, and says the same.
#include <gmock/gmock.h>

#include <algorithm>
#include <cctype>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

constexpr char kSystem[] =
    "You are a patient librarian who has read every book of this house, and who answers with the "
    "title, the shelf and the page, never with more than that.";

class PrefixReuseTest : public CoreTest {
 protected:
  // Greedy, with the logarithms that any other state would change.
  static v1::GenerateRequest Chat(const std::string& session,
                                  const std::vector<std::pair<const char*, std::string>>& messages,
                                  int max = 12) {
    v1::GenerateRequest request = Request(session, "", max);
    for (const auto& [role, content] : messages) {
      auto* message = request.mutable_messages()->add_messages();
      message->set_role(role);
      message->set_content(content);
    }
    request.set_logprobs(1);
    return request;
  }
  CollectingSink As(const std::string& tenant, const v1::GenerateRequest& request) {
    CallContext context;
    context.tenant = tenant;
    CollectingSink sink;
    const absl::Status status = core->Generate(context, request, sink);
    EXPECT_TRUE(status.ok()) << status;
    return sink;
  }
  // The turn reads all of `request` itself.
  CollectingSink Alone(v1::GenerateRequest request) {
    request.set_no_prefix_reuse(true);
    CollectingSink sink = MustGenerate(request);
    EXPECT_EQ(sink.final.usage().reused_input_tokens(), 0);
    return sink;
  }
  static int64_t Reused(const CollectingSink& sink) {
    return sink.final.usage().reused_input_tokens();
  }
  static void ExpectSame(const CollectingSink& got, const CollectingSink& want) {
    EXPECT_EQ(got.tokens, want.tokens);
    EXPECT_EQ(got.text, want.text);
    EXPECT_EQ(got.started.input_tokens(), want.started.input_tokens());
    EXPECT_EQ(got.final.position_tokens(), want.final.position_tokens());
    EXPECT_EQ(Reused(got) + got.final.usage().input_tokens(), want.final.usage().input_tokens());
    ASSERT_EQ(got.logprobs.size(), want.logprobs.size());
    for (size_t i = 0; i < got.logprobs.size(); ++i) {
      ASSERT_EQ(got.logprobs[i].logprob(), want.logprobs[i].logprob()) << "token " << i;
    }
  }
};

TEST_F(PrefixReuseTest, AStatelessConversationReadsWhatIsNew) {
  Start();
  std::vector<std::pair<const char*, std::string>> messages = {{"system", kSystem}};
  int64_t read_before = 0;
  for (int turn = 0; turn < 4; ++turn) {
    messages.emplace_back("user", absl::StrCat("Where is volume ", turn,
                                               " of the history of the town and its harbour?"));
    const CollectingSink alone = Alone(Chat("", messages));
    const CollectingSink got = MustGenerate(Chat("", messages));
    ExpectSame(got, alone);
    // At least to where the last user's message ended.
    EXPECT_GE(Reused(got), read_before) << turn;
    EXPECT_EQ(Reused(got) > 0, turn > 0);
    const int64_t input = alone.final.usage().input_tokens();
    EXPECT_LT(Reused(got), input);
    read_before = input - 16;  // without what the template writes before the answer
    messages.emplace_back("assistant", got.text);
  }
}

TEST_F(PrefixReuseTest, WhatWasSaidNeedNotBeReadAgain) {
  Start();
  const std::string text = "Once upon a time there was a harbour with one ship and many gulls.";
  auto first = Request("", text, 24);
  const CollectingSink begun = MustGenerate(first);
  // Tokens as they were: the state behind the whole first turn serves.
  CallContext context;
  v1::TokenizeRequest tokenize;
  tokenize.set_text(text);
  tokenize.set_add_bos(begun.started.input_tokens() >
                       core->Tokenize(context, tokenize)->token_ids_size());
  const auto ids = core->Tokenize(context, tokenize);
  ASSERT_TRUE(ids.ok());
  ASSERT_EQ(ids->token_ids_size(), begun.started.input_tokens());
  auto second = Request("", "", 12);
  *second.mutable_token_ids()->mutable_ids() = ids->token_ids();
  second.mutable_token_ids()->mutable_ids()->Add(begun.tokens.begin(), begun.tokens.end());
  second.mutable_token_ids()->add_ids(7);
  second.set_logprobs(1);
  const CollectingSink got = MustGenerate(second);
  EXPECT_EQ(Reused(got), begun.started.input_tokens() + 24);
  EXPECT_EQ(got.final.usage().input_tokens(), 1);
  ExpectSame(got, Alone(second));
}

TEST_F(PrefixReuseTest, SessionsShareTheirSystemMessage) {
  Start();
  Create("one");
  Create("two");
  Create("alone");
  const auto one = MustGenerate(Chat("one", {{"system", kSystem}, {"user", "Who wrote it?"}}));
  EXPECT_EQ(Reused(one), 0);
  const auto ask = [](const std::string& id) {
    return Chat(id, {{"system", kSystem}, {"user", "And in which year was that?"}});
  };
  const auto alone = Alone(ask("alone"));
  const auto two = MustGenerate(ask("two"));
  EXPECT_GT(Reused(two), 32);
  ExpectSame(two, alone);
  // What is committed is the whole of it, and goes on alike, after a restart as well.
  EXPECT_EQ(Get("two").position_tokens(), Get("alone").position_tokens());
  Start();
  const auto go_on = [&](const char* id) { return MustGenerate(Chat(id, {{"user", "Thanks."}})); };
  const auto next = go_on("two"), expected = go_on("alone");
  EXPECT_EQ(next.tokens, expected.tokens);
  EXPECT_EQ(next.logprobs.back().logprob(), expected.logprobs.back().logprob());
  v1::ReadTranscriptRequest read;
  CallContext context;
  read.set_name(Name("two"));
  const auto transcript = core->ReadTranscript(context, read);
  ASSERT_TRUE(transcript.ok()) << transcript.status();
  EXPECT_THAT(transcript->DebugString(), testing::HasSubstr("patient librarian"));
}

TEST_F(PrefixReuseTest, AnotherTenantReadsEverything) {
  Start();
  const auto request = Chat("", {{"system", kSystem}, {"user", "Where?"}});
  EXPECT_EQ(Reused(As("default", request)), 0);
  EXPECT_EQ(Reused(As("stranger", request)), 0);
  EXPECT_GT(Reused(As("default", request)), 0);
}

TEST_F(PrefixReuseTest, IsLeftOutOnRequestAndBySetting) {
  Start();
  auto request = Chat("", {{"system", kSystem}, {"user", "Where?"}});
  Alone(request);
  EXPECT_EQ(Reused(MustGenerate(request)), 0) << "the one before has left nothing";
  EXPECT_GT(Reused(MustGenerate(request)), 0);
  EXPECT_GT(Gauge("mneme_prefix_state_bytes"), 0);
  config.limits.prefix_memory_percent = 0;
  Start();
  MustGenerate(request);
  EXPECT_EQ(Reused(MustGenerate(request)), 0);
  EXPECT_EQ(Gauge("mneme_prefix_state_bytes"), 0);
}

TEST_F(PrefixReuseTest, APurgeTakesThemAlong) {
  Start();
  Create("s");
  const auto request = Chat("s", {{"system", kSystem}, {"user", "Where?"}});
  MustGenerate(request);
  EXPECT_GT(Gauge("mneme_prefix_state_bytes"), 0);
  CallContext context;
  v1::DeleteSessionRequest purge;
  purge.set_name(Name("s"));
  purge.set_purge(true);
  ASSERT_TRUE(core->DeleteSession(context, purge).ok());
  EXPECT_EQ(Gauge("mneme_prefix_state_bytes"), 0);
}

// Whatever the architecture keeps of what it has read.
class PrefixReuseOfTest : public PrefixReuseTest,
                          public testing::WithParamInterface<const char*> {};

TEST_P(PrefixReuseOfTest, SaysTheSame) {
  config.models[0].path = absl::StrCat(MNEME_TINY_DIR, "/", GetParam());
  Start();
  auto request = Request("", "", 16);
  request.set_logprobs(1);
  for (int turn = 0; turn < 3; ++turn) {
    for (int i = 0; i < 50; ++i) request.mutable_token_ids()->add_ids((i * i + 7 * turn) % 61);
    const CollectingSink alone = Alone(request);
    const CollectingSink got = MustGenerate(request);
    ExpectSame(got, alone);
    EXPECT_EQ(Reused(got), 50 * turn);
    // The last token of what is there already is read once more: its logits are wanted.
    const CollectingSink again = MustGenerate(request);
    EXPECT_EQ(Reused(again), 50 * turn);
    ExpectSame(again, alone);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Architectures, PrefixReuseOfTest,
    testing::Values("tiny-llama-q.gguf", "tiny-infini-delta", "tiny-fam-a", "tiny-titans-lmm-a",
                    "tiny-titans-mac-a", "tiny-titans-mag-a", "tiny-titans-mal-a", "tiny-pangu-a",
                    "tiny-rwkv4-a", "tiny-rwkv52-a", "tiny-rwkv6-a", "tiny-rwkv7-a"),
    [](const auto& info) {
      std::string name = info.param;
      std::replace_if(
          name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
      return name;
    });

}  // namespace
}  // namespace mneme::server
