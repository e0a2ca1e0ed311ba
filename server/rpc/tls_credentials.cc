#include "server/rpc/tls_credentials.h"

#include <grpc/grpc.h>
#include <spdlog/spdlog.h>

#include <utility>

namespace mneme::server {
namespace {

// Three calls of stat() are cheap, but a client may connect very often.
constexpr std::chrono::seconds kLookInterval{1};

// Over C credentials, since C++ has none whose certificate the server itself chooses anew for each
// handshake: those that watch files do not say what was wrong with them, and install a key that
// does not belong to the certificate.
class PortCredentials final : public grpc::ServerCredentials {
 public:
  explicit PortCredentials(grpc_server_credentials* credentials) : credentials_(credentials) {}
  ~PortCredentials() override { grpc_server_credentials_release(credentials_); }
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  grpc_server_credentials* const credentials_;
};

}  // namespace

TlsCredentials::TlsCredentials(const Config::Listen::Tls& tls, TlsFiles files)
    : tls_(tls),
      files_(std::move(files)),
      stamp_(files_.stamp),
      looked_(std::chrono::steady_clock::now()) {}

std::shared_ptr<grpc::ServerCredentials> TlsCredentials::ForPort() {
  const grpc_ssl_client_certificate_request_type request =
      tls_.client_ca.empty()     ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
      : tls_.require_client_cert ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                 : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY;
  grpc_ssl_server_credentials_options* options =
      grpc_ssl_server_credentials_create_options_using_config_fetcher(request, &Fetch, this);
  return std::make_shared<PortCredentials>(
      grpc_ssl_server_credentials_create_with_options(options));
}

void TlsCredentials::Install(TlsFiles files) {
  MutexLock lock(&mutex_);
  files_ = std::move(files);
  stamp_ = files_.stamp;
  changed_ = true;
}

void TlsCredentials::LookAtFiles() {
  const auto now = std::chrono::steady_clock::now();
  if (now - looked_ < kLookInterval) return;
  looked_ = now;
  std::string stamp = TlsFilesStamp(tls_);
  if (stamp == stamp_) return;
  stamp_ = std::move(stamp);  // whatever is wrong is said once
  absl::StatusOr<TlsFiles> files = ReadTlsFiles(tls_);
  if (!files.ok()) {
    spdlog::error("TLS stays as it is: {}", std::string(files.status().message()));
    return;
  }
  files_ = *std::move(files);
  stamp_ = files_.stamp;
  changed_ = true;
  spdlog::info("TLS: the files have changed and are used from now on");
}

grpc_ssl_certificate_config_reload_status TlsCredentials::Fetch(
    void* self, grpc_ssl_server_certificate_config** config) {
  auto& tls = *static_cast<TlsCredentials*>(self);
  MutexLock lock(&tls.mutex_);
  tls.LookAtFiles();
  if (!tls.changed_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
  const grpc_ssl_pem_key_cert_pair pair = {tls.files_.private_key.c_str(),
                                           tls.files_.certificate_chain.c_str()};
  // gRPC 1.51 insists on roots from a fetcher. Where no client is asked for a certificate, nothing
  // is checked with them.
  const std::string& roots =
      tls.files_.client_roots.empty() ? tls.files_.certificate_chain : tls.files_.client_roots;
  *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
  tls.changed_ = false;
  return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
}

}  // namespace mneme::server
