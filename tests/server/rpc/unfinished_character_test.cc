// A character that turns of one token cut, as a stream and Complete tell it to a client.
#include "tests/server/rpc/served_core.h"

namespace mneme::server {
namespace {

constexpr char kEmoji[] = "\xF0\x9F\x98\x80";

class ServedUnfinishedCharacterTest : public ServedCoreTest {};

TEST_F(ServedUnfinishedCharacterTest, AStreamAndCompleteAgreeTurnByTurn) {
  Serve();
  v1::TokenizeRequest tokenize;
  tokenize.set_text(kEmoji);
  v1::TokenizeResponse emoji;
  ASSERT_TRUE(Call(*generation_, &v1::Generation::Stub::Tokenize, tokenize, &emoji).ok());
  for (const char* id : {"streamed", "completed"}) {
    ASSERT_TRUE(CreateOverRpc(id).ok());
    ASSERT_TRUE(Turn(Request(id, "abc", 0)).ok());
  }
  std::string text;
  for (const int32_t token : emoji.token_ids()) {
    auto request = Request("completed", "", 1);
    (*request.mutable_sampling()->mutable_logit_bias())[token] = 100;
    v1::CompleteResponse completed;
    ASSERT_TRUE(Turn(request, &completed).ok());

    request.set_session(Name("streamed"));
    grpc::ClientContext context;
    const auto stream = generation_->Generate(&context, request);
    std::string streamed;
    v1::GenerateResponse event;
    while (stream->Read(&event)) streamed += event.delta().text();
    ASSERT_TRUE(stream->Finish().ok());

    EXPECT_EQ(streamed, completed.text());
    EXPECT_EQ(event.final().held_bytes(), completed.final().held_bytes());
    EXPECT_EQ(completed.text().empty(), completed.final().held_bytes() > 0);
    text += streamed;
  }
  EXPECT_EQ(text, kEmoji);
}

}  // namespace
}  // namespace mneme::server
