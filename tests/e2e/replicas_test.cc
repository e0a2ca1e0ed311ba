// Two real servers of one PostgreSQL database: who writes a session, and what is left of a server
// that died or stood still.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/e2e/postgres_test_base.h"
#include "tests/support/http_get.h"

namespace mneme::test {
namespace {

constexpr absl::Duration kLease = absl::Seconds(3);
constexpr int kEndless = 65536;  // tokens

class ReplicasTest : public PostgresTestBase {
 protected:
  struct Replica {
    TemporaryFolder folder;
    std::unique_ptr<ServerProcess> server;
    std::unique_ptr<client::Client> client;
  };

  void SetUp() override {
    uri_ = database_.NewDatabase();
    Run(a_, "a");
    Run(b_, "b");
    ASSERT_FALSE(HasFatalFailure());
    Create(*a_.client, "s");
    Create(*a_.client, "undisturbed");
  }

  void Run(Replica& replica, const std::string& name) {
    ServerProcess::Options options = Options(uri_);
    options.folder = replica.folder.path();
    options.flags.insert(
        options.flags.end(),
        {"--replica.name", name, "--replica.lease_ttl", absl::FormatDuration(kLease),
         "--replica.lease_renew", absl::FormatDuration(kLease / 6)});
    auto server = ServerProcess::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    replica.server = *std::move(server);
    replica.client = std::make_unique<client::Client>(Connect(*replica.server));
  }

  // A turn on `s` that has the lease and has said something.
  client::GenerateStream Running(Replica& replica, const std::string& text) {
    auto stream = replica.client->Generate(Request("s", text, kEndless));
    EXPECT_TRUE(stream.ok()) << stream.status();
    v1::GenerateResponse event;
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(stream->Next(&event));
    return *std::move(stream);
  }

  static double Metric(const Replica& replica, const std::string& series) {
    return SampleIn(HttpGet(replica.server->metrics_address(), "/metrics").body, series);
  }

  std::string uri_;
  Replica a_, b_;
};

TEST_F(ReplicasTest, ASessionGoesToAndFro) {
  for (int turn = 0; turn < 6; ++turn) {
    const std::string text = absl::StrCat("turn ", turn);
    EXPECT_EQ(Turn(turn % 2 == 0 ? *a_.client : *b_.client, "s", text),
              Turn(*a_.client, "undisturbed", text));
  }
  EXPECT_EQ(Metric(a_, "mneme_leases_held"), 0);
  EXPECT_EQ(Metric(b_, "mneme_leases_held"), 0);
}

TEST_F(ReplicasTest, ASessionThatIsWrittenElsewhereIsBusyAndNamesTheServer) {
  {
    client::GenerateStream running = Running(a_, "One");
    const auto refused = b_.client->Complete(Request("s", "Two", 12));
    const client::Error error = client::ErrorOf(refused.status());
    EXPECT_EQ(error.reason, "SESSION_BUSY") << refused.status();
    EXPECT_EQ(error.metadata.at("owner"), "a");
  }
  EXPECT_FALSE(Turn(*b_.client, "s", "Two").empty());
}

// kill -9 in the middle of a turn: the other server waits for the lease to end and goes on from the
// last commit.
TEST_F(ReplicasTest, TheOtherServerTakesOverFromOneThatWasKilled) {
  for (const char* session : {"s", "undisturbed"}) {
    ASSERT_FALSE(Turn(*a_.client, session, "One").empty());
  }
  {
    client::GenerateStream running = Running(a_, "never heard");
    a_.server->Kill();
    running.Cancel();
  }
  const absl::Time start = absl::Now();
  EXPECT_EQ(Turn(*b_.client, "s", "Two"), Turn(*b_.client, "undisturbed", "Two"));
  EXPECT_LT(absl::Now() - start, kLease + absl::Seconds(5));
  EXPECT_EQ(Metric(b_, "mneme_lease_events_total{event=\"taken_over\"}"), 1);
}

// kill -9, and a client that knows both servers: its turn goes on at the other one.
TEST_F(ReplicasTest, ATurnGoesOnAtTheOtherServer) {
  constexpr int kTokens = 200;
  const auto uncut = a_.client->Complete(Request("undisturbed", "One", kTokens));
  ASSERT_TRUE(uncut.ok()) << uncut.status();
  client::Client both =
      Connect(absl::StrCat("ipv4:", a_.server->address(), ",", b_.server->address()));
  auto stream = both.Generate(Request("s", "One", kTokens));
  ASSERT_TRUE(stream.ok()) << stream.status();
  std::string text;
  std::vector<int32_t> tokens;
  bool killed = false;
  for (const v1::GenerateResponse& event : *stream) {
    text += event.delta().text();
    tokens.insert(tokens.end(), event.delta().token_ids().begin(), event.delta().token_ids().end());
    if (killed || tokens.size() < 60) continue;
    killed = true;
    a_.server->Kill();
  }
  const auto final = stream->Finish();
  ASSERT_TRUE(final.ok()) << final.status();
  EXPECT_TRUE(killed);
  EXPECT_EQ(stream->resumed(), 1);
  EXPECT_EQ(text, uncut->text());
  EXPECT_THAT(tokens, testing::ElementsAreArray(uncut->token_ids()));
  EXPECT_EQ(final->version(), 1);
  EXPECT_EQ(b_.client->GetSession("s")->version(), 1);
  EXPECT_EQ(Metric(b_, "mneme_lease_events_total{event=\"taken_over\"}"), 1);
  EXPECT_EQ(Turn(*b_.client, "s", "Two"), Turn(*b_.client, "undisturbed", "Two"));
}

// The owner stood still while the other server went on with its turn, and comes back: the turn is
// one, and what the owner writes late is refused.
TEST_F(ReplicasTest, AnOwnerThatStoodStillDoesNotDisturbItsTurnElsewhere) {
  constexpr int kTokens = 3000;
  const auto uncut = b_.client->Complete(Request("undisturbed", "One", kTokens));
  ASSERT_TRUE(uncut.ok()) << uncut.status();
  auto begun = a_.client->Generate(Request("s", "One", kTokens));
  ASSERT_TRUE(begun.ok()) << begun.status();
  v1::GenerateResponse event;
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(begun->Next(&event));
  a_.server->Signal(SIGSTOP);
  v1::ResumeGenerationRequest resume;
  resume.set_resume_token(begun->started()->resume_token());
  std::string text;
  absl::StatusOr<client::GenerateStream::Final> final = absl::UnknownError("");
  const absl::Time deadline = absl::Now() + 4 * kLease;
  do {
    EXPECT_THAT(client::ErrorOf(final.status()).reason, testing::AnyOf("", "SESSION_BUSY"));
    absl::SleepFor(absl::Milliseconds(100));
    auto stream = b_.client->ResumeGeneration(resume);
    ASSERT_TRUE(stream.ok()) << stream.status();
    for (const v1::GenerateResponse& rest : *stream) {
      if (text.empty() && rest.has_delta()) a_.server->Signal(SIGCONT);
      text += rest.delta().text();
    }
    final = stream->Finish();
  } while (!final.ok() && absl::Now() < deadline);
  ASSERT_TRUE(final.ok()) << final.status();
  EXPECT_EQ(text, uncut->text());
  EXPECT_EQ(final->version(), 1);
  EXPECT_EQ(b_.client->GetSession("s")->version(), 1);
  // The first reader has what its server had said, and hears the rest at last: from the store.
  std::string first;
  while (begun->Next(&event)) first += event.delta().text();
  const auto end = begun->Finish();
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_EQ(end->version(), 1);
  EXPECT_TRUE(absl::EndsWith(uncut->text(), first));
}

// An owner that stands still for longer than its lease lasts finds its session taken over, and what
// it was about to write refused.
TEST_F(ReplicasTest, AnOwnerThatStoodStillCannotWrite) {
  client::GenerateStream running = Running(a_, "One");
  a_.server->Signal(SIGSTOP);
  EXPECT_EQ(Turn(*b_.client, "s", "Two"), Turn(*b_.client, "undisturbed", "Two"));
  const auto taken = b_.client->GetSession("s");
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_EQ(taken->version(), 1);
  a_.server->Signal(SIGCONT);
  const auto late = running.Finish();
  EXPECT_EQ(client::ErrorOf(late.status()).reason, "LEASE_LOST") << late.status();
  EXPECT_EQ(Metric(a_, "mneme_leases_held"), 0);

  // And sees, from its own memory or not, what the other one wrote.
  EXPECT_EQ(Turn(*a_.client, "s", "Three"), Turn(*b_.client, "undisturbed", "Three"));
  const auto session = a_.client->GetSession("s");
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->version(), 2);
}

}  // namespace
}  // namespace mneme::test
