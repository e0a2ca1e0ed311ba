#include "client/transport_error.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/error.h"

namespace mneme::client {
namespace {

double MiB(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// What a proxy means by a status, for the person who can change something.
const char* MeaningOf(int http_status) {
  switch (http_status) {
    case 401:
    case 407:
      return "it wants credentials";
    case 403:
      return "it does not let this client through";
    case 404:
      return "it forwards nothing at this address to a Mneme server";
    case 408:
    case 504:
      return "the server behind it took too long";
    case 400:
    case 405:
    case 415:
    case 426:
    case 505:
      return "it does not forward gRPC here, which needs HTTP/2 to the end";
    case 429:
      return "it limits how often may be called";
    case 502:
    case 503:
      return "it reaches no server behind it";
    default:
      return "the call did not reach a Mneme server";
  }
}

absl::Status TooLargeForProxy() {
  return WithReason(absl::ResourceExhaustedError(
                        "the request is larger than a proxy on the way to the server lets through"),
                    "REQUEST_TOO_LARGE");
}

absl::Status ExplainHttp(const absl::Status& status, int http_status) {
  if (http_status == 413) return TooLargeForProxy();
  return WithReason(
      absl::Status(status.code(), absl::StrCat("a proxy on the way to the server answered HTTP ",
                                               http_status, ": ", MeaningOf(http_status))),
      "HTTP_STATUS", {{"http_status", absl::StrCat(http_status)}});
}

absl::Status ExplainReset(const absl::Status& status, int http2_error) {
  // RFC 9113, 8.1: NO_ERROR follows a whole answer to a request that nobody will read to its end. A
  // server's own answer would have had a status.
  if (http2_error == 0) return TooLargeForProxy();
  return WithReason(
      absl::Status(status.code(),
                   absl::StrCat("the stream was broken off on the way to the server (HTTP/2 error ",
                                http2_error, ")")),
      "STREAM_RESET", {{"http2_error", absl::StrCat(http2_error)}});
}

absl::Status ExplainSize(const absl::Status& status, int64_t bytes, int64_t max) {
  if (max == kMaxAnswerBytes) {
    return absl::Status(
        status.code(),
        absl::StrFormat("the answer has %.1f MiB; this client takes at most %.0f MiB", MiB(bytes),
                        MiB(max)));
  }
  return WithReason(
      absl::Status(
          status.code(),
          absl::StrFormat("the request has %.1f MiB; this server takes at most %.1f MiB in "
                          "one (limits.max_request_bytes)",
                          MiB(bytes), MiB(max))),
      "REQUEST_TOO_LARGE",
      {{"request_bytes", absl::StrCat(bytes)}, {"max_request_bytes", absl::StrCat(max)}});
}

}  // namespace

absl::Status ExplainTransport(absl::Status status) {
  const std::string text(status.message());
  int http_status = 0;
  if (std::sscanf(text.c_str(), "Received http2 header with status: %d", &http_status) == 1) {
    return ExplainHttp(status, http_status);
  }
  int http2_error = 0;
  if (std::sscanf(text.c_str(), "Received RST_STREAM with error code %d", &http2_error) == 1) {
    return ExplainReset(status, http2_error);
  }
  unsigned bytes = 0;
  int max = 0;
  if (std::sscanf(text.c_str(), "Received message larger than max (%u vs. %d)", &bytes, &max) ==
      2) {
    return ExplainSize(status, bytes, max);
  }
  return status;
}

}  // namespace mneme::client
