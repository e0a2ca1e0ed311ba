// `mneme ingest` through kill -9 of the server, of the tool, and through interrupts: what comes out
// is what an undisturbed ingest makes, bit for bit.
#include <signal.h>

#include <random>

#include "absl/time/clock.h"
#include "tests/e2e/cli_test_base.h"

namespace mneme::test {
namespace {

class CliIngestTest : public CliE2eTest {
 protected:
  void SetUp() override {
    CliE2eTest::SetUp();
    // About 10,000 tokens: seconds of work, of which a commit comes every 256 tokens.
    std::mt19937 random(20261122);
    std::printf("text seed 20261122\n");
    const std::vector<std::string> words = {
        "The",   "lighthouse", "keeper",   "wrote",  "every", "visitor", "asked", "again", "about",
        "small", "things",     "remember", "pages.", "naïve", "light",   "—",     "house", "never"};
    std::string text;
    while (text.size() < 40'000) {
      absl::StrAppend(&text, words[random() % words.size()], random() % 12 == 0 ? "\n" : " ");
    }
    book_ = WriteFile("book.txt", text);
    size_ = static_cast<int64_t>(text.size());
  }

  std::vector<std::string> Ingest(const std::string& session, std::vector<std::string> more = {}) {
    std::vector<std::string> args = {
        "ingest", book_, "-s", session, "--create", "--commit-every-tokens", "256"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  // Waits until a part of the text is durable.
  static void WaitForDurable(ChildProcess& ingest) {
    const absl::Time deadline = absl::Now() + absl::Seconds(120);
    while (absl::Now() < deadline && !ingest.Ended()) {
      const std::string out = ingest.Out();
      size_t line = 0;
      for (size_t end; (end = out.find('\n', line)) != std::string::npos; line = end + 1) {
        if (Parse(out.substr(line, end - line))["durable_bytes"].get<int64_t>() > 0) return;
      }
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  // The first `durable_bytes` of an ingest: where it began.
  static int64_t Start(const std::vector<Json>& lines) {
    return lines.empty() ? -1 : lines.front()["durable_bytes"].get<int64_t>();
  }
  void ExpectSameAsUndisturbed(const std::string& session) {
    if (Run({"sessions", "get", "undisturbed"}).code != 0) {
      const std::vector<Json> lines = OutLines(Ingest("undisturbed"));
      EXPECT_EQ(Start(lines), 0);
      EXPECT_EQ(lines.back()["done"], true);
      EXPECT_EQ(lines.back()["durable_bytes"], size_);
    }
    EXPECT_EQ(OutJson({"sessions", "get", session})["position_tokens"],
              OutJson({"sessions", "get", "undisturbed"})["position_tokens"]);
    // Equal log-probabilities to the last bit: equal states.
    EXPECT_EQ(OutJson({"score", "-s", session, " The keeper went on", "--logprobs", "3"}),
              OutJson({"score", "-s", "undisturbed", " The keeper went on", "--logprobs", "3"}));
  }

  std::filesystem::path book_;
  int64_t size_ = 0;
};

TEST_F(CliIngestTest, TheServerIsKilledAndTheIngestResumesByItself) {
  auto ingest = Spawn(Ingest("killed", {"--json"}));
  ASSERT_NE(ingest, nullptr);
  WaitForDurable(*ingest);
  server_->Kill();
  ASSERT_FALSE(ingest->Ended()) << "the text is too short for this machine: " << ingest->Out();
  StartServer();
  const ChildProcess::Result result = ingest->Wait();
  EXPECT_EQ(result.code, 0) << result.err;
  const std::vector<Json> lines = ParseLines(result.out);
  EXPECT_EQ(lines.back()["done"], true);
  // It went on in the middle: the second server's first answer says where.
  int64_t read_tokens = -1, resumed_bytes = -1;
  for (const Json& line : lines) {
    if (line["read_tokens"].get<int64_t>() < read_tokens) {
      resumed_bytes = line["durable_bytes"].get<int64_t>();
    }
    read_tokens = line["read_tokens"].get<int64_t>();
  }
  EXPECT_LT(resumed_bytes, size_);
  ExpectSameAsUndisturbed("killed");
}

TEST_F(CliIngestTest, BothAreKilledAndTheSameCommandGoesOn) {
  {
    auto ingest = Spawn(Ingest("twice", {"--json"}));
    ASSERT_NE(ingest, nullptr);
    WaitForDurable(*ingest);
    ASSERT_FALSE(ingest->Ended());
    server_->Kill();
  }  // and the tool
  StartServer();
  const std::vector<Json> lines = OutLines(Ingest("twice"));
  EXPECT_GT(Start(lines), 0);
  EXPECT_LT(Start(lines), size_);
  EXPECT_EQ(lines.back()["done"], true);
  ExpectSameAsUndisturbed("twice");

  // Once more it is there already; --again reads it a second time.
  EXPECT_NE(Out(Ingest("twice")).find("Already ingested"), std::string::npos);
  const int64_t once = OutJson({"sessions", "get", "twice"})["position_tokens"].get<int64_t>();
  EXPECT_EQ(Start(OutLines(Ingest("twice", {"--again"}))), 0);
  EXPECT_GT(OutJson({"sessions", "get", "twice"})["position_tokens"].get<int64_t>(), once + 1000);
}

TEST_F(CliIngestTest, WithoutAServerItGivesUpAndTheSameCommandGoesOnLater) {
  auto ingest = Spawn(Ingest("outage", {"--json", "--max-outage", "0.2"}));
  ASSERT_NE(ingest, nullptr);
  WaitForDurable(*ingest);
  server_->Kill();
  const ChildProcess::Result given_up = ingest->Wait();
  EXPECT_EQ(given_up.code, 5) << given_up.err;
  EXPECT_EQ(Parse(given_up.err)["error"]["code"], "UNAVAILABLE");
  StartServer();
  const std::vector<Json> lines = OutLines(Ingest("outage"));
  EXPECT_GT(Start(lines), 0);
  ExpectSameAsUndisturbed("outage");
}

TEST_F(CliIngestTest, CtrlCStopsItAndTheSameCommandGoesOn) {
  auto ingest = Spawn(Ingest("stopped", {"--json"}));
  ASSERT_NE(ingest, nullptr);
  WaitForDurable(*ingest);
  ingest->Signal(SIGINT);
  EXPECT_EQ(ingest->Wait().code, 130);
  // The tool that was stopped does not wait for the server, which still ends its segment.
  ChildProcess::Result again;
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  do {
    again = Run(Ingest("stopped", {"--json"}));
  } while (again.code == 4 && absl::Now() < deadline &&
           Parse(again.err)["error"]["reason"] == "SESSION_BUSY");
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_GT(Start(ParseLines(again.out)), 0);
  ExpectSameAsUndisturbed("stopped");

  // Another turn in between makes the rest of a text meaningless.
  ingest = Spawn(Ingest("between", {"--json"}));
  WaitForDurable(*ingest);
  ingest->Signal(SIGINT);
  EXPECT_EQ(ingest->Wait().code, 130);
  Out({"generate", "-s", "between", "x", "-n", "1", "--queue"});
  EXPECT_EQ(Error(Ingest("between"), 4)["reason"], "VERSION_MISMATCH");
}

TEST_F(CliIngestTest, FromAPipe) {
  const std::string text = ReadFile(book_);
  const ChildProcess::Result piped =
      Run({"ingest", "-", "-s", "undisturbed-pipe", "--create"}, text);
  EXPECT_EQ(piped.code, 0) << piped.err;
  EXPECT_NE(piped.out.find("Ingested"), std::string::npos);
  ExpectSameAsUndisturbed("undisturbed-pipe");
  EXPECT_EQ(
      Error({"ingest", "-", "-s", "undisturbed-pipe"}, 6, "bad \xff text")["fields"][0]["field"],
      "data.data");
}

}  // namespace
}  // namespace mneme::test
