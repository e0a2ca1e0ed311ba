// Streams that break: the C++ client, a proxy that cuts the connection behind any byte, and real
// servers that are killed.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/e2e/server_test_base.h"
#include "tests/support/cutting_proxy.h"

namespace mneme::test {
namespace {

constexpr int kTokens = 16;

class ResumeTest : public ServerTestBase {
 protected:
  void SetUp() override {
    // One token is one event, and waits for its reader.
    server_ = Start(Options({"--limits.max_unsent_tokens", "1"}));
    ASSERT_NE(server_, nullptr);
    proxy_ = std::make_unique<CuttingProxy>(server_->address());
    direct_ = Connect(server_->address());
    broken_ = Connect(proxy_->address());
  }
  static v1::GenerateRequest Turn(const std::string& session) {
    return Request(session, "The lighthouse keeper", kTokens);
  }

  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<CuttingProxy> proxy_;
  std::optional<client::Client> direct_, broken_;
};

TEST_F(ResumeTest, CutBehindEveryTokenTheTextIsTheUncutOne) {
  Create(*direct_, "whole");
  std::set<size_t> ends;  // of events, in tokens: those of one character come together
  std::vector<int32_t> uncut_tokens;
  std::string uncut_text;
  auto uncut = direct_->Generate(Turn("whole"));
  ASSERT_TRUE(uncut.ok()) << uncut.status();
  for (const v1::GenerateResponse& event : *uncut) {
    ends.insert(uncut_tokens.size());
    uncut_text += event.delta().text();
    uncut_tokens.insert(uncut_tokens.end(), event.delta().token_ids().begin(),
                        event.delta().token_ids().end());
  }
  const auto uncut_final = uncut->Finish();
  ASSERT_TRUE(uncut_final.ok()) << uncut_final.status();
  ASSERT_EQ(uncut_tokens.size(), size_t{kTokens});
  ASSERT_GT(ends.size(), size_t{kTokens / 2});
  std::set<size_t> cut_behind;  // so many tokens
  // Some bytes come when they like, so that a cut does not always hit the same token: until each
  // was hit.
  int bytes = 0;
  for (int cut = 0; cut_behind != ends; ++cut) {
    ASSERT_LT(cut, 400) << "cuts behind " << cut_behind.size() << " tokens only";
    const std::string id = absl::StrCat("cut-", cut);
    Create(*direct_, id);
    v1::GenerateRequest turn = Turn(id);
    const int cuts = proxy_->cuts();
    proxy_->CutAfter(bytes);
    auto stream = broken_->Generate(turn);
    ASSERT_TRUE(stream.ok()) << stream.status();
    std::vector<int32_t> tokens;
    std::string text;
    int resumed = 0;
    for (const v1::GenerateResponse& event : *stream) {
      if (stream->resumed() > resumed) {
        cut_behind.insert(tokens.size());
        resumed = stream->resumed();
      }
      text += event.delta().text();
      tokens.insert(tokens.end(), event.delta().token_ids().begin(),
                    event.delta().token_ids().end());
    }
    const auto final = stream->Finish();
    ASSERT_TRUE(final.ok()) << "cut after " << bytes << " bytes: " << final.status();
    EXPECT_EQ(text, uncut_text) << bytes;
    EXPECT_EQ(tokens, uncut_tokens) << bytes;
    EXPECT_TRUE(final->committed());
    EXPECT_EQ(final->version(), 1) << "done once";
    EXPECT_EQ(final->position_tokens(), uncut_final->position_tokens());
    // Smaller steps than the least event, from another byte in each round.
    bytes = proxy_->cuts() == cuts ? cut % 12 : bytes + 12;
    proxy_->CutAfter(-1);
  }
}

// kill -9 behind every few tokens; the next server has the same port and the same store.
TEST_F(ResumeTest, KilledBehindAnyTokenTheTextIsTheUncutOne) {
  constexpr int kLong = 150;
  const auto turn = [](const std::string& session) {
    return Request(session, "The lighthouse keeper", kLong);
  };
  Create(*direct_, "whole");
  const auto uncut = direct_->Complete(turn("whole"));
  ASSERT_TRUE(uncut.ok()) << uncut.status();
  ServerProcess::Options options = Options({"--limits.max_unsent_tokens", "1"});
  options.address = server_->address();
  std::vector<size_t> kill_behind;
  for (size_t tokens = 0; tokens < kLong; tokens += tokens < 2 ? 1 : 21) {
    kill_behind.push_back(tokens);
  }
  kill_behind.push_back(kLong);  // at the commit
  int64_t recomputed = 0;
  for (const size_t after : kill_behind) {
    SCOPED_TRACE(absl::StrCat("killed behind ", after, " tokens"));
    const std::string id = absl::StrCat("killed-", after);
    Create(*direct_, id);
    auto stream = direct_->Generate(turn(id));
    ASSERT_TRUE(stream.ok()) << stream.status();
    std::vector<int32_t> tokens;
    std::string text;
    bool killed = false;
    std::thread starter;
    for (const v1::GenerateResponse& event : *stream) {
      text += event.delta().text();
      tokens.insert(tokens.end(), event.delta().token_ids().begin(),
                    event.delta().token_ids().end());
      if (killed || tokens.size() < after) continue;
      killed = true;
      server_->Kill();
      starter = std::thread([&] { server_ = Start(options); });
    }
    ASSERT_TRUE(killed);
    starter.join();
    ASSERT_NE(server_, nullptr);
    const auto final = stream->Finish();
    ASSERT_TRUE(final.ok()) << final.status();
    EXPECT_EQ(stream->resumed(), 1);
    EXPECT_EQ(text, uncut->text());
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), uncut->token_ids().begin(),
                           uncut->token_ids().end()));
    EXPECT_TRUE(final->committed());
    EXPECT_EQ(final->version(), 1);
    EXPECT_EQ(final->position_tokens(), uncut->final().position_tokens());
    const auto session = direct_->GetSession(id);
    ASSERT_TRUE(session.ok()) << session.status();
    EXPECT_EQ(session->version(), 1) << "done once";
    recomputed += final->usage().recomputed_tokens();
  }
  EXPECT_GT(recomputed, 0) << "no turn was found in the store";
}

// kill -9 at random moments: while turns begin, run, are committed and are resumed.
TEST_F(ResumeTest, KilledAtRandomMomentsUnderLoadEveryTurnIsWholeAndOnce) {
  constexpr int kClients = 4, kKills = 8, kLong = 120;
  ServerProcess::Options options = Options();
  options.address = server_->address();
  std::atomic<bool> stop = false;
  std::atomic<int> resumed = 0;
  const auto run = [&](const std::string& id) {
    client::Client client = Connect(options.address);
    Create(client, id);
    for (int64_t version = 1; !stop && !HasFailure(); ++version) {
      auto stream = client.Generate(Request(id, absl::StrCat("Turn ", version), kLong));
      ASSERT_TRUE(stream.ok()) << stream.status();
      std::vector<int32_t> heard;
      for (const v1::GenerateResponse& event : *stream) {
        heard.insert(heard.end(), event.delta().token_ids().begin(),
                     event.delta().token_ids().end());
      }
      const auto final = stream->Finish();
      ASSERT_TRUE(final.ok()) << final.status();
      EXPECT_EQ(final->version(), version) << "done once";
      EXPECT_EQ(heard.size(), size_t{kLong});
      resumed += stream->resumed();
      // The session has read what was heard.
      v1::ReadTranscriptRequest read;
      read.set_name(id);
      read.set_last_tokens(kLong);
      read.set_view(v1::ReadTranscriptRequest::TOKEN_IDS);
      auto transcript = client.ReadTranscript(read);
      while (absl::IsUnavailable(transcript.status())) {
        absl::SleepFor(absl::Milliseconds(50));
        transcript = client.ReadTranscript(read);
      }
      ASSERT_TRUE(transcript.ok()) << transcript.status();
      EXPECT_EQ(transcript->version(), version);
      std::vector<int32_t> kept;
      for (const auto& turn : transcript->turns()) {
        for (const auto& part : turn.parts()) {
          kept.insert(kept.end(), part.token_ids().begin(), part.token_ids().end());
        }
      }
      EXPECT_EQ(kept, heard) << id << ", version " << version;
    }
  };
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) clients.emplace_back(run, absl::StrCat("s", i));
  std::mt19937 random(1);
  for (int kill = 0; kill < kKills && !HasFailure(); ++kill) {
    absl::SleepFor(absl::Milliseconds(std::uniform_int_distribution<int>(20, 300)(random)));
    server_->Kill();
    server_ = Start(options);
    if (server_ == nullptr) break;
  }
  stop = true;
  for (std::thread& client : clients) client.join();
  EXPECT_GT(resumed, 0);
}

// SIGTERM, to a server that does not wait for turns to end.
TEST_F(ResumeTest, WhatADrainCutsGoesOnAtTheNextServer) {
  constexpr int kLong = 300;
  Create(*direct_, "whole");
  Create(*direct_, "s");
  const auto uncut = direct_->Complete(Request("whole", "The lighthouse keeper", kLong));
  ASSERT_TRUE(uncut.ok()) << uncut.status();
  ServerProcess::Options options = Options({"--drain.timeout", "0s"});
  options.flags.insert(options.flags.end(), {"--limits.max_unsent_tokens", "1"});
  options.address = server_->address();
  server_->Kill();
  server_ = Start(options);
  ASSERT_NE(server_, nullptr);
  auto stream = direct_->Generate(Request("s", "The lighthouse keeper", kLong));
  ASSERT_TRUE(stream.ok()) << stream.status();
  std::string text;
  std::thread starter;
  int events = 0;
  for (const v1::GenerateResponse& event : *stream) {
    text += event.delta().text();
    if (++events != 50) continue;
    server_->Signal(SIGTERM);
    starter = std::thread([&] {
      EXPECT_EQ(server_->Wait().code, 0) << server_->Log();
      server_ = Start(options);
    });
  }
  starter.join();
  const auto final = stream->Finish();
  ASSERT_TRUE(final.ok()) << final.status();
  EXPECT_EQ(stream->resumed(), 1);
  EXPECT_EQ(text, uncut->text());
  EXPECT_EQ(final->version(), 1);
  EXPECT_GT(final->usage().recomputed_tokens(), 40) << "all that was said is stored";
}

// A call with one answer is sent again, and finds the turn that it began.
TEST_F(ResumeTest, ACallWithoutAStreamSurvivesItsServerToo) {
  constexpr int kLong = 2000;
  Create(*direct_, "whole");
  Create(*direct_, "s");
  const auto uncut = direct_->Complete(Request("whole", "The lighthouse keeper", kLong));
  ASSERT_TRUE(uncut.ok()) << uncut.status();
  ServerProcess::Options options = Options();
  options.address = server_->address();
  std::thread killer([&] {
    while (direct_->GetSession("s")->state() != v1::Session::RUNNING) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    absl::SleepFor(absl::Milliseconds(100));
    server_->Kill();
    server_ = Start(options);
  });
  const auto answer = direct_->Complete(Request("s", "The lighthouse keeper", kLong));
  killer.join();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->text(), uncut->text());
  EXPECT_EQ(answer->final().version(), 1);
}

// Nothing is stored of a turn without a session.
TEST_F(ResumeTest, AStatelessTurnDiesWithItsServer) {
  auto stream = direct_->Generate(Request("", "The lighthouse keeper", 60000));
  ASSERT_TRUE(stream.ok());
  v1::GenerateResponse event;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(stream->Next(&event));
  ServerProcess::Options options = Options();
  options.address = server_->address();
  server_->Kill();
  server_ = Start(options);
  const absl::Status status = stream->Finish().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(client::ErrorOf(status).reason, "") << "what broke the stream, not RESUME_EXPIRED";
}

TEST_F(ResumeTest, AServerThatStaysAwayEndsTheStreamWithAnUnknownOutcome) {
  Create(*direct_, "s");
  auto client = client::Client::Connect({.server = server_->address(),
                                         .connect_timeout = absl::Milliseconds(500),
                                         .resume_window = absl::Milliseconds(500)});
  ASSERT_TRUE(client.ok()) << client.status();
  auto turn = Turn("s");
  turn.set_max_output_tokens(60000);
  auto stream = client->Generate(turn);
  ASSERT_TRUE(stream.ok());
  v1::GenerateResponse event;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(stream->Next(&event));
  server_->Kill();
  const absl::Status status = stream->Finish().status();
  EXPECT_FALSE(status.ok());
  EXPECT_TRUE(client::ErrorOf(status).outcome_unknown) << status;
}

}  // namespace
}  // namespace mneme::test
