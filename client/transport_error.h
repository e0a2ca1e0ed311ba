// Failures that no Mneme server sent, but gRPC itself or a proxy on the way: in words and reasons
// of ours instead of gRPC's. Internal to the library.
//
//   REQUEST_TOO_LARGE   metadata request_bytes and max_request_bytes if it is the server's limit;
//                       neither if it is a proxy's, which refuses with HTTP 413, or by answering a
//                       request that it has not read to its end
//   HTTP_STATUS         metadata http_status: a proxy's answer, there being none of the server's
//   STREAM_RESET        metadata http2_error: something on the way has broken the stream off
#pragma once

#include "absl/status/status.h"

namespace mneme::client {

// Our own limit for an answer: log-probabilities of a long text exceed gRPC's default of 4 MiB.
inline constexpr int kMaxAnswerBytes = 256 << 20;

// `status` of an RPC that carries no details. If its text is one of gRPC's for the cases above, the
// reason and a text that says what it means; the code stays, but a proxy's limit is
// RESOURCE_EXHAUSTED as the server's is. Else `status` itself.
absl::Status ExplainTransport(absl::Status status);

}  // namespace mneme::client
