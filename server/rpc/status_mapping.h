// The one place where an absl::Status becomes a grpc::Status.
#pragma once

#include <grpcpp/support/status.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace mneme::server {

// The code is the same number. Payloads (google.rpc details, server/core/errors.h) travel as a
// serialized google.rpc.Status in grpc-status-details-bin, ErrorInfo first.
//
// Every error leaves with an ErrorInfo: one that has none gets a reason from its code, and if it is
// INTERNAL or UNKNOWN its text is replaced, since it may name files or memory; the caller logs the
// original. Text and details are cut so that they fit the 8 KiB of metadata that gRPC clients
// accept by default: a refusal must not itself be refused.
grpc::Status ToGrpcStatus(const absl::Status& status);

// The reason that an error leaves with.
std::string ReasonForClient(const absl::Status& status);

// The whole characters of `text` that fit into `max_bytes`.
std::string TruncateUtf8(std::string_view text, size_t max_bytes);

}  // namespace mneme::server
