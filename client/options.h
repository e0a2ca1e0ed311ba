// SPDX-License-Identifier: Apache-2.0
//
// What a client and a call can be told.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace grpc {
class ChannelCredentials;
}  // namespace grpc

namespace mneme::client {

// PEM files. Any of them means TLS.
struct TlsOptions {
  std::string ca_file;    // authorities that the server's certificate may be from; "": the system's
  std::string cert_file;  // the client's own certificate, if the server wants one
  std::string key_file;   // its private key

  bool empty() const { return ca_file.empty() && cert_file.empty() && key_file.empty(); }
};

struct Options {
  // HOST, HOST:PORT, http://HOST:PORT, https://HOST:PORT (TLS), or any gRPC target such as
  // dns:///host:port
  std::string server = "127.0.0.1:7447";
  std::string tenant = "default";  // short names belong to it
  TlsOptions tls;
  // Sent with every call; `mneme keys create` makes one. Only over TLS or to this machine, unless
  // `plaintext_key` is set: whoever listens in on plain text can use it.
  std::string api_key;
  bool plaintext_key = false;
  // Null: TLS if `server` or `tls` say so, else plain text.
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  // Connect() waits as long for a server, and so does a call that finds it away.
  absl::Duration connect_timeout = absl::Seconds(5);
  // Deadline of calls that run no model. Calls that do (Generate, Complete, Score, RewindSession,
  // IngestSession) have none unless `work_timeout` or the call says so.
  absl::Duration timeout = absl::Seconds(60);
  absl::Duration work_timeout = absl::InfiniteDuration();
  // A stream of Generate that breaks is resumed: the server goes on with its turn for so long
  // without a reader, and a server that is away is waited for. At most 600 s; zero: never, and a
  // broken stream ends its turn.
  absl::Duration resume_window = absl::Seconds(60);
  bool health_check = false;  // use only addresses whose grpc.health.v1 says SERVING
};

struct CallOptions {
  std::optional<absl::Duration> timeout;  // instead of the client's
  std::string request_id;                 // sent as x-request-id; "": a random UUID per call
};

}  // namespace mneme::client
