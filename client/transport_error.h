// Failures that no Mneme server sent, but gRPC itself or a proxy on the way: in words and reasons
// of ours instead of gRPC's. Internal to the library.
//
//   REQUEST_TOO_LARGE   metadata request_bytes and max_request_bytes if it is the server's limit,
//                       http_status "413" if it is a proxy's
//   HTTP_STATUS         metadata http_status: a proxy's answer, there being none of the server's
#pragma once

#include "absl/status/status.h"

namespace mneme::client {

// Our own limit for an answer: log-probabilities of a long text exceed gRPC's default of 4 MiB.
inline constexpr int kMaxAnswerBytes = 256 << 20;

// `status` of an RPC that carries no details. If its text is one of gRPC's for the cases above, the
// reason and a text that says what it means; the code stays, but a 413 is RESOURCE_EXHAUSTED as the
// server's limit is. Else `status` itself.
absl::Status ExplainTransport(absl::Status status);

}  // namespace mneme::client
