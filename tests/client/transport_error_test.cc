// What a call gets if something else than a Mneme server answers, over real connections.
#include "client/transport_error.h"

#include <gtest/gtest.h>

#include "client/client.h"
#include "client/request_check.h"
#include "tests/client/fake_proxy.h"

namespace mneme::client {
namespace {

Error Ask(const FakeProxy& proxy) {
  auto client = Client::Connect({.server = proxy.address()});
  EXPECT_TRUE(client.ok()) << client.status();
  v1::GenerateRequest request;
  request.set_text("Hello");
  // Without the retries of calls that change nothing.
  return client.ok() ? ErrorOf(client->Generate(request)->Finish().status()) : Error();
}

TEST(TransportError, AProxysLimitIsARequestTooLarge) {
  // With the answer alone, and as nginx does while the client is still sending.
  for (const std::optional<int> reset : {std::optional<int>(), std::optional<int>(0)}) {
    FakeProxy proxy(413, reset);
    const Error error = Ask(proxy);
    EXPECT_EQ(error.code, absl::StatusCode::kResourceExhausted) << error.message;
    EXPECT_EQ(error.reason, "REQUEST_TOO_LARGE");
    EXPECT_NE(error.message.find("larger than a proxy"), std::string::npos) << error.message;
  }
}

TEST(TransportError, AStreamThatIsBrokenOffSaysByWhat) {
  FakeProxy proxy(std::nullopt, 2);
  const Error error = Ask(proxy);
  EXPECT_EQ(error.reason, "STREAM_RESET");
  EXPECT_EQ(error.metadata.at("http2_error"), "2");
}

TEST(TransportError, OtherAnswersOfAProxySayWhatTheyMean) {
  const std::pair<int, const char*> cases[] = {{403, "does not let this client through"},
                                               {404, "forwards nothing"},
                                               {502, "reaches no server behind it"},
                                               {504, "took too long"},
                                               {418, "did not reach a Mneme server"}};
  for (const auto& [status, meaning] : cases) {
    FakeProxy proxy(status);
    const Error error = Ask(proxy);
    EXPECT_EQ(error.reason, "HTTP_STATUS") << status;
    EXPECT_EQ(error.metadata.at("http_status"), std::to_string(status));
    EXPECT_NE(error.message.find(meaning), std::string::npos) << error.message;
  }
}

TEST(TransportError, OtherTextsStayAsTheyAre) {
  const absl::Status status = absl::UnavailableError("Socket closed");
  EXPECT_EQ(ExplainTransport(status), status);
}

TEST(TransportError, AnAnswerTooLargeIsNoFaultOfTheRequest) {
  const absl::Status status = ExplainTransport(
      absl::ResourceExhaustedError("Received message larger than max (300000000 vs. 268435456)"));
  EXPECT_EQ(ErrorOf(status).reason, "");
  EXPECT_EQ(status.message(), "the answer has 286.1 MiB; this client takes at most 256 MiB");
}

TEST(RequestCheck, NoMessageIsLargerThan2GiB) {
  EXPECT_TRUE(CheckRequestSize(0x7fffffff).ok());
  const Error error = ErrorOf(CheckRequestSize(0x80000000));
  EXPECT_EQ(error.reason, "REQUEST_TOO_LARGE");
  EXPECT_EQ(error.metadata.at("request_bytes"), "2147483648");
}

}  // namespace
}  // namespace mneme::client
