// Ingest: the same text gives the same tokens however it is cut, and a break loses no more than
// what was not durable.
#include <random>

#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

class IngestTest : public CoreTest {
 protected:
  absl::StatusOr<std::unique_ptr<Ingest>> Open(CallContext& context, const std::string& id,
                                               const std::string& ingest_id,
                                               int64_t commit_every = 0) {
    v1::IngestRequest::Start start;
    start.set_session(Name(id));
    start.set_ingest_id(ingest_id);
    start.set_commit_every_tokens(commit_every);
    return core->StartIngest(context, start);
  }
  static v1::IngestRequest::Data Frame(int64_t offset, std::string_view bytes, bool last = false) {
    v1::IngestRequest::Data data;
    data.set_offset_bytes(offset);
    data.set_data(std::string(bytes));
    data.set_last(last);
    return data;
  }
  // Feeds `text` in frames of the sizes that `size` returns; returns the session afterwards.
  v1::Session Feed(const std::string& id, const std::string& text,
                   const std::function<size_t()>& size) {
    Create(id);
    CallContext context;
    auto ingest = Open(context, id, "i");
    EXPECT_TRUE(ingest.ok()) << ingest.status();
    size_t at = 0;
    while (true) {
      const size_t n = std::min(size(), text.size() - at);
      const bool last = at + n == text.size();
      const absl::Status status =
          (*ingest)->Write(Frame(static_cast<int64_t>(at), text.substr(at, n), last));
      EXPECT_TRUE(status.ok()) << status;
      at += n;
      if (last || !status.ok()) break;
    }
    EXPECT_TRUE((*ingest)->progress().done());
    EXPECT_EQ((*ingest)->progress().durable_bytes(), static_cast<int64_t>(text.size()));
    ingest->reset();
    return Get(id);
  }
};

TEST_F(IngestTest, AnyCutGivesTheSameState) {
  config.engine.window_tokens = 64;
  Start();
  std::mt19937 random(3);
  std::string text;
  const char* words[] = {"alpha ", "be ta\n", "caf\xC3\xA9 ", "\xE2\x82\xAC",
                         "  ",     "1234",    "x,y; "};
  while (text.size() < 6000) text += words[random() % 7];
  const v1::Session whole = Feed("whole", text, [] { return size_t{1 << 20}; });
  const auto expected = Say("whole", "", 10).tokens;
  EXPECT_GT(whole.position_tokens(), 100);
  const auto check = [&](const std::string& id, const std::function<size_t()>& size) {
    EXPECT_EQ(Feed(id, text, size).position_tokens(), whole.position_tokens()) << id;
    EXPECT_EQ(Say(id, "", 10).tokens, expected) << id;
  };
  check("bytes", [] { return size_t{1}; });
  check("sevens", [] { return size_t{7}; });
  check("random", [&] { return size_t{random() % 300}; });
  // The same as a turn that reads the text at once.
  Create("turn");
  EXPECT_EQ(Say("turn", text, 10).tokens, expected);
}

TEST_F(IngestTest, UnbrokenRunsAreCutAlike) {
  config.engine.window_tokens = 64;
  config.limits.prefill_chunk_tokens = 512;
  config.limits.max_step_tokens = 512;
  Start();
  const std::string text =
      "start " + std::string(70000, 'a') + " middle \xC3\xA9" + std::string(3000, 'b');
  const auto whole = Feed("whole", text, [] { return size_t{1 << 20}; });
  EXPECT_EQ(Feed("odd", text, [] { return size_t{999}; }).position_tokens(),
            whole.position_tokens());
  EXPECT_EQ(Say("odd", "", 5).tokens, Say("whole", "", 5).tokens);
}

TEST_F(IngestTest, ResumesAfterABreak) {
  Start();
  std::string text;
  for (int i = 0; i < 400; ++i) text += absl::StrCat("word", i, " ");
  const auto whole = Feed("whole", text, [] { return size_t{1 << 20}; });
  const auto expected = Say("whole", "", 8).tokens;

  Create("s");
  int64_t from = 0;
  int breaks = 0;
  bool done = false;
  while (!done) {
    CallContext context;
    auto ingest = Open(context, "s", "same", 50);
    ASSERT_TRUE(ingest.ok()) << ingest.status();
    const int64_t durable = (*ingest)->progress().durable_bytes();
    EXPECT_GE(durable, from);
    from = durable;
    // Two frames that overlap what is durable already, then the connection breaks.
    int64_t at = std::max<int64_t>(0, durable - 10);
    for (int frame = 0; frame < 2 && !done; ++frame) {
      const auto n = std::min<int64_t>(700, static_cast<int64_t>(text.size()) - at);
      const bool last = at + n == static_cast<int64_t>(text.size());
      const absl::Status status = (*ingest)->Write(Frame(at, text.substr(at, n), last));
      ASSERT_TRUE(status.ok()) << status;
      at += n;
      done = (*ingest)->progress().done();
    }
    ingest->reset();
    EXPECT_EQ(Get("s").state(), v1::Session::ACTIVE);
    if (++breaks % 2 == 0) Start();
    ASSERT_LT(breaks, 50);
  }
  EXPECT_GT(breaks, 2);
  EXPECT_EQ(Get("s").position_tokens(), whole.position_tokens());
  EXPECT_EQ(Say("s", "", 8).tokens, expected);
  // Sent once more: done at once, nothing read.
  const int64_t version = Get("s").version();
  CallContext context;
  auto again = Open(context, "s", "same");
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE((*again)->progress().done());
  EXPECT_TRUE((*again)->Write(Frame(0, text, true)).ok());
  EXPECT_EQ(Get("s").version(), version);
}

TEST_F(IngestTest, Errors) {
  Start();
  Create("s");
  CallContext context;
  EXPECT_EQ(BadFields(Open(context, "s", "").status()),
            std::vector<std::string>{"start.ingest_id"});
  auto ingest = Open(context, "s", "a", 5);
  ASSERT_TRUE(ingest.ok());
  // It holds the writer.
  CollectingSink sink;
  EXPECT_EQ(ReasonOf(Generate(Request("s", "x", 1), sink)), reason::kSessionBusy);
  ASSERT_TRUE((*ingest)->Write(Frame(0, "some words that are long enough to commit ")).ok());
  const absl::Status gap = (*ingest)->Write(Frame(100, "x"));
  EXPECT_EQ(gap.code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(ReasonOf(gap), reason::kIngestGap);
  ingest->reset();
  const absl::StatusOr<v1::Session> broken = TryGet("s");
  ASSERT_TRUE(broken.ok());
  EXPECT_EQ(broken->state(), v1::Session::ACTIVE);

  ingest = Open(context, "s", "b");
  ASSERT_TRUE(ingest.ok());
  const absl::Status bad = (*ingest)->Write(Frame(0, "abc\xFFz"));
  EXPECT_EQ(ReasonOf(bad), reason::kFieldInvalid);
  EXPECT_THAT(std::string(bad.message()), ::testing::HasSubstr("byte 3"));
  ingest->reset();
  ingest = Open(context, "s", "c");
  ASSERT_TRUE(ingest.ok());
  EXPECT_EQ(BadFields((*ingest)->Write(Frame(0, std::string((1 << 20) + 1, 'a')))),
            std::vector<std::string>{"data.data"});
  ingest->reset();
  ingest = Open(context, "s", "d");
  ASSERT_TRUE(ingest.ok());
  EXPECT_EQ(ReasonOf((*ingest)->Write(Frame(0, "abc\xE2\x82", true))), reason::kFieldInvalid);
  ingest->reset();

  // Another turn in between.
  Create("t");
  ingest = Open(context, "t", "x", 5);
  ASSERT_TRUE(ingest.ok());
  const std::string many(4000, 'w');
  std::string text;
  for (int i = 0; i < 300; ++i) text += "word word ";
  ASSERT_TRUE((*ingest)->Write(Frame(0, text)).ok());
  ASSERT_GT((*ingest)->progress().durable_bytes(), 0);
  ingest->reset();
  Say("t", "a turn", 2);
  const absl::Status mismatch = Open(context, "t", "x").status();
  EXPECT_EQ(mismatch.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(mismatch), reason::kVersionMismatch);
}

}  // namespace
}  // namespace mneme::server
