// TLS of a client's connection. Internal to the library.
#pragma once

#include <grpcpp/security/credentials.h>

#include <memory>

#include "absl/status/statusor.h"
#include "client/options.h"

namespace mneme::client {

// kInvalidArgument, naming the file, if one cannot be read or holds something else, or if of
// certificate and key one is missing.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsCredentials(const TlsOptions& tls);

// Why no connection comes about although something listens at `target`: gRPC tries again for ever,
// and does not say. Connects once itself, which takes at most two seconds. UNAVAILABLE with a
// reason:
//
//   TLS_EXPECTED       plain text was sent to a server that speaks TLS
//   TLS_NOT_SPOKEN     TLS was sent to a server that does not
//   TLS_SERVER_UNKNOWN its certificate is of no authority that is trusted, expired, or of other
//   names TLS_REFUSED        the server does not accept this client's certificate, or wants one
//
// OK if there is nothing to be said about it: nobody listens, or answers in time, or all is well.
absl::Status ExplainNoConnection(const std::string& target, bool tls, const TlsOptions& options);

}  // namespace mneme::client
