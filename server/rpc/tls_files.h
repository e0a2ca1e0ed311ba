// The listener's certificate, private key and the roots that its clients' certificates are checked
// with, as they are in their files.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "server/core/config.h"

namespace mneme::server {

struct TlsFiles {
  std::string certificate_chain;  // PEM, the server's own first
  std::string private_key;        // PEM
  std::string client_roots;       // PEM; "" if clients show no certificates
  std::string stamp;              // TlsFilesStamp of just before they were read
};

// INVALID_ARGUMENT, naming setting and file, if one of them cannot be read, holds something else,
// does not fit the others, or has expired. `tls.cert` must be set.
absl::StatusOr<TlsFiles> ReadTlsFiles(const Config::Listen::Tls& tls);

// Changes when one of the files does: their times, sizes and inodes.
std::string TlsFilesStamp(const Config::Listen::Tls& tls);

}  // namespace mneme::server
