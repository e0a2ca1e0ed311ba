// The listener's TLS: which certificate a new connection gets, renewed without a restart.
//
// Each handshake asks for the files that hold now. They are read again by Install(), and by a
// handshake that finds them changed on disk, so that what renews a certificate need not tell the
// server. Connections that exist keep what they were made with.
#pragma once

#include <grpc/grpc_security.h>
#include <grpcpp/security/server_credentials.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/core/mutex.h"
#include "server/core/config.h"
#include "server/rpc/tls_files.h"

namespace mneme::server {

class TlsCredentials {
 public:
  TlsCredentials(const Config::Listen::Tls& tls, TlsFiles files);

  // For one listening port. This must outlive the server that has it.
  std::shared_ptr<grpc::ServerCredentials> ForPort();
  // From the next handshake on.
  void Install(TlsFiles files);

 private:
  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config);
  void LookAtFiles() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Config::Listen::Tls tls_;
  Mutex mutex_;
  TlsFiles files_ ABSL_GUARDED_BY(mutex_);
  bool changed_ ABSL_GUARDED_BY(mutex_) = true;  // since gRPC has seen them
  std::string stamp_ ABSL_GUARDED_BY(mutex_);    // of the last look at them
  std::chrono::steady_clock::time_point looked_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
