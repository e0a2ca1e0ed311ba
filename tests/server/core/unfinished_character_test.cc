// A character that a turn's end cuts belongs to the session until a later turn completes it.
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

using ::testing::ElementsAre;

constexpr char kEmoji[] = "\xF0\x9F\x98\x80";
constexpr char kReplacement[] = "\xEF\xBF\xBD";

class UnfinishedCharacterTest : public CoreTest {
 protected:
  void SetUp() override {
    Start();
    CallContext context;
    v1::TokenizeRequest request;
    request.set_text(kEmoji);
    const auto tokens = core->Tokenize(context, request);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    emoji_.assign(tokens->token_ids().begin(), tokens->token_ids().end());
    ASSERT_GE(emoji_.size(), 3u);
    for (const std::string& piece : tokens->pieces()) pieces_.push_back(piece);
    Create("s");
    Say("s", "abc", 0);
  }

  // A request for one token, which is `token` whatever the model thinks.
  static v1::GenerateRequest One(const std::string& id, int32_t token) {
    auto request = Request(id, "", 1);
    (*request.mutable_sampling()->mutable_logit_bias())[token] = 100;
    return request;
  }
  CollectingSink Write(const std::string& id, int32_t token) {
    auto turn = MustGenerate(One(id, token));
    EXPECT_THAT(turn.tokens, ElementsAre(token));
    return turn;
  }
  // All of the emoji but its last token. Returns the bytes it has then.
  int Begin(const std::string& id) {
    int bytes = 0;
    for (size_t i = 0; i + 1 < emoji_.size(); ++i) {
      bytes += static_cast<int>(pieces_[i].size());
      const auto turn = Write(id, emoji_[i]);
      EXPECT_EQ(turn.text, "");
      EXPECT_EQ(turn.final.held_bytes(), bytes);
    }
    return bytes;
  }
  void ExpectCompletes(const std::string& id) {
    const auto turn = Write(id, emoji_.back());
    EXPECT_EQ(turn.text, kEmoji);
    EXPECT_EQ(turn.final.held_bytes(), 0);
  }
  absl::Status Rewind(const std::string& id,
                      const std::function<void(v1::RewindSessionRequest&)>& to) {
    CallContext context;
    v1::RewindSessionRequest request;
    request.set_name(Name(id));
    to(request);
    return core->RewindSession(context, request).status();
  }

  std::vector<int32_t> emoji_;
  std::vector<std::string> pieces_;
};

TEST_F(UnfinishedCharacterTest, TurnsOfOneTokenEachGiveTheWholeCharacter) {
  Begin("s");
  ExpectCompletes("s");
  EXPECT_EQ(Write("s", emoji_.front()).text, "");  // the next one begins anew
}

TEST_F(UnfinishedCharacterTest, SurvivesARestart) {
  for (size_t i = 0; i < emoji_.size(); ++i) {
    Start();
    EXPECT_EQ(Write("s", emoji_[i]).text, i + 1 < emoji_.size() ? "" : kEmoji);
  }
}

TEST_F(UnfinishedCharacterTest, SurvivesForkAndRewind) {
  Begin("s");
  const v1::Session begun = Get("s");
  CallContext context;
  v1::ForkSessionRequest fork;
  fork.set_name(Name("s"));
  fork.add_session_ids("child");
  ASSERT_TRUE(core->ForkSession(context, fork).ok());
  ExpectCompletes("child");

  ExpectCompletes("s");
  ASSERT_TRUE(Rewind("s", [&](auto& request) {
                request.set_snapshot(absl::StrCat(Name("s"), "/snapshots/v", begun.version()));
              }).ok());
  ExpectCompletes("s");
  // A place between two turns, and one that a single turn ran over.
  ASSERT_TRUE(Rewind("s", [&](auto& request) {
                request.set_position_tokens(begun.position_tokens());
              }).ok());
  ExpectCompletes("s");
  auto ids = Request("s", "", 0);
  for (const int32_t id : emoji_) ids.mutable_token_ids()->add_ids(id);
  EXPECT_EQ(MustGenerate(ids).final.held_bytes(), 0);
  ASSERT_TRUE(Rewind("s", [&](auto& request) {
                request.set_position_tokens(Get("s").position_tokens() - 1);
              }).ok());
  ExpectCompletes("s");
}

TEST_F(UnfinishedCharacterTest, ReadingNothingKeepsItAndReadingTextLosesIt) {
  const int bytes = Begin("s");
  EXPECT_EQ(Say("s", "", 0).final.held_bytes(), bytes);
  const auto other = Say("s", "x", 0);
  EXPECT_EQ(other.text, "");
  EXPECT_EQ(other.final.held_bytes(), 0);
  EXPECT_EQ(Write("s", emoji_.back()).text.find(kEmoji), std::string::npos);
}

TEST_F(UnfinishedCharacterTest, TheOutputCompletesWhatTokenIdsBegan) {
  auto request = One("s", emoji_.back());
  for (size_t i = 0; i + 1 < emoji_.size(); ++i) request.mutable_token_ids()->add_ids(emoji_[i]);
  EXPECT_EQ(MustGenerate(request).text, kEmoji);
}

TEST_F(UnfinishedCharacterTest, ATurnThatIsNotKeptLeavesItWithTheSession) {
  const int bytes = Begin("s");
  auto request = One("s", emoji_.front());
  request.set_max_output_tokens(60000);
  request.set_commit_policy(v1::GenerateRequest::DISCARD);
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse& event) {
    CallContext context;
    v1::CancelGenerationRequest cancel;
    cancel.set_name(sink.started.generation());
    if (event.has_delta()) {
      EXPECT_TRUE(core->CancelGeneration(context, cancel).ok());
    }
    return true;
  };
  ASSERT_TRUE(Generate(request, sink).ok());
  EXPECT_FALSE(sink.final.committed());
  EXPECT_EQ(sink.final.held_bytes(), bytes);
  ExpectCompletes("s");
}

TEST_F(UnfinishedCharacterTest, AnEndThatTheModelChoseLosesIt) {
  const int32_t stop = Say("", "abc", 1).tokens[0];
  for (const bool drop : {false, true}) {
    const std::string id = drop ? "drop" : "keep";
    Create(id);
    Say(id, "abc", 0);
    const int bytes = Begin(id);
    auto request = One(id, stop);
    request.add_stop_token_ids(stop);
    request.set_end_handling(drop ? v1::GenerateRequest::DROP : v1::GenerateRequest::KEEP);
    const auto turn = MustGenerate(request);
    EXPECT_EQ(turn.final.finish_reason(), v1::STOP_TOKEN);
    // With DROP the session ends before that token: inside the character.
    EXPECT_EQ(turn.text, drop ? "" : kReplacement);
    EXPECT_EQ(turn.final.held_bytes(), drop ? bytes : 0);
  }
}

TEST_F(UnfinishedCharacterTest, AStatelessCallHasNoNextTurn) {
  auto request = One("", emoji_.front());
  request.set_text("abc");
  const auto turn = MustGenerate(request);
  EXPECT_EQ(turn.text, kReplacement);
  EXPECT_EQ(turn.final.held_bytes(), 0);
}

}  // namespace
}  // namespace mneme::server
