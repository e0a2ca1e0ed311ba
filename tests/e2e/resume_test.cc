// Streams over a real network that breaks: a real server, the C++ client, and a proxy that cuts the
// connection behind any byte.
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
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

TEST_F(ResumeTest, AServerThatIsKilledEndsTheStreamWithAnUnknownOutcome) {
  Create(*direct_, "s");
  auto turn = Turn("s");
  turn.set_max_output_tokens(60000);
  auto stream = direct_->Generate(turn);
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
