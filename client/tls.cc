#include "client/tls.h"

#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/error.h"
#include "client/server_address.h"

namespace mneme::client {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;

template <auto Free>
struct Freed {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};

absl::StatusOr<std::string> Read(const std::string& path, const char* what) {
  if (path.empty()) return "";
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " ", path, " cannot be read: ", std::strerror(errno)));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  if (!absl::StrContains(text, "-----BEGIN ") || text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(what, " ", path, " is no PEM file"));
  }
  return text;
}

// A TCP connection that gives up on its own; -1 if there is none.
class Socket {
 public:
  explicit Socket(const HostAndPort& peer) {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (getaddrinfo(peer.host.c_str(), peer.port.c_str(), &hints, &found) != 0) return;
    for (const addrinfo* at = found; at != nullptr && fd_ < 0; at = at->ai_next) {
      fd_ = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, at->ai_protocol);
      const timeval patience{.tv_sec = 0, .tv_usec = 700'000};  // of each wait; there are few
      setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
      setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
      if (fd_ >= 0 && connect(fd_, at->ai_addr, at->ai_addrlen) != 0) {
        close(fd_);
        fd_ = -1;
      }
    }
    freeaddrinfo(found);
  }
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

// OpenSSL writes to sockets that may be closed, and this is a library in somebody's program.
class NoSigpipe {
 public:
  NoSigpipe() {
    sigemptyset(&sigpipe_);
    sigaddset(&sigpipe_, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &sigpipe_, &before_);
  }
  ~NoSigpipe() {
    const timespec now = {};
    if (sigismember(&before_, SIGPIPE) == 0) sigtimedwait(&sigpipe_, nullptr, &now);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  NoSigpipe(const NoSigpipe&) = delete;
  NoSigpipe& operator=(const NoSigpipe&) = delete;

 private:
  sigset_t sigpipe_, before_;
};

// What a TLS handshake with the peer comes to.
struct Handshake {
  bool connected = false;
  bool silent = false;  // no answer in time: nothing is known
  bool answered_with_tls = false;
  std::string wrong_with_server;  // "" if nothing is
  std::string refused_by_server;  // its alert
};

Handshake TryHandshake(const HostAndPort& peer, const TlsOptions& options) {
  Handshake result;
  const NoSigpipe no_sigpipe;  // outlives all that writes
  const Socket socket(peer);
  if (socket.fd() < 0) return result;
  result.connected = true;

  ERR_clear_error();
  const std::unique_ptr<SSL_CTX, Freed<SSL_CTX_free>> context(SSL_CTX_new(TLS_client_method()));
  if (options.ca_file.empty()) {
    SSL_CTX_set_default_verify_paths(context.get());
  } else {
    SSL_CTX_load_verify_locations(context.get(), options.ca_file.c_str(), nullptr);
  }
  if (!options.cert_file.empty()) {
    SSL_CTX_use_certificate_chain_file(context.get(), options.cert_file.c_str());
    SSL_CTX_use_PrivateKey_file(context.get(), options.key_file.c_str(), SSL_FILETYPE_PEM);
  }
  const std::unique_ptr<SSL, Freed<SSL_free>> ssl(SSL_new(context.get()));
  SSL_set_fd(ssl.get(), socket.fd());
  SSL_set_verify(ssl.get(), SSL_VERIFY_PEER, nullptr);
  X509_VERIFY_PARAM* expected = SSL_get0_param(ssl.get());
  if (X509_VERIFY_PARAM_set1_ip_asc(expected, peer.host.c_str()) != 1) {
    SSL_set_tlsext_host_name(ssl.get(), peer.host.c_str());
    SSL_set1_host(ssl.get(), peer.host.c_str());
  }
  static constexpr unsigned char kHttp2[] = {2, 'h', '2'};
  SSL_set_alpn_protos(ssl.get(), kHttp2, sizeof(kHttp2));
  ERR_clear_error();

  const int returned = SSL_connect(ssl.get());
  const bool done = returned == 1;
  result.silent = SSL_get_error(ssl.get(), returned) == SSL_ERROR_WANT_READ;
  const unsigned long error = ERR_peek_error();
  // An alert, or a certificate to look at, comes from somebody who speaks TLS.
  const bool alert = ERR_GET_LIB(error) == ERR_LIB_SSL && ERR_GET_REASON(error) > 1000;
  const long verified = SSL_get_verify_result(ssl.get());
  result.answered_with_tls = done || alert || verified != X509_V_OK;
  if (!done) {
    if (verified != X509_V_OK) result.wrong_with_server = X509_verify_cert_error_string(verified);
    if (alert) result.refused_by_server = ERR_reason_error_string(error);
    return result;
  }
  // In TLS 1.3 the server looks at the client's certificate last: what it thinks of it comes in the
  // place of its first bytes. gRPC's own servers hang up without a word.
  char byte = 0;
  ERR_clear_error();
  if (const int read = SSL_read(ssl.get(), &byte, 1); read <= 0) {
    const unsigned long refusal = ERR_peek_error();
    if (ERR_GET_REASON(refusal) > 1000) {
      result.refused_by_server = ERR_reason_error_string(refusal);
    } else if (const int why = SSL_get_error(ssl.get(), read);
               why == SSL_ERROR_SSL || why == SSL_ERROR_ZERO_RETURN ||
               (why == SSL_ERROR_SYSCALL && errno != EAGAIN)) {
      result.refused_by_server =
          options.cert_file.empty()
              ? "it hangs up after the handshake, as it does if it wants a client's certificate"
              : "it hangs up after the handshake, as it does if it does not know the certificate";
    }
  }
  ERR_clear_error();
  return result;
}

absl::Status Unavailable(const char* reason, std::string text) {
  return WithReason(absl::UnavailableError(std::move(text)), reason);
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsCredentials(const TlsOptions& tls) {
  if (tls.cert_file.empty() != tls.key_file.empty()) {
    return absl::InvalidArgumentError(
        "a client's certificate and its key must be given together (tls_cert and tls_key)");
  }
  grpc::SslCredentialsOptions options;
  for (const auto& [text, path, what] :
       {std::tuple(&options.pem_root_certs, &tls.ca_file, "the file of authorities"),
        std::tuple(&options.pem_cert_chain, &tls.cert_file, "the client's certificate"),
        std::tuple(&options.pem_private_key, &tls.key_file, "the client's key")}) {
    auto read = Read(*path, what);
    if (!read.ok()) return read.status();
    *text = *std::move(read);
  }
  if (!tls.cert_file.empty()) {
    // gRPC would not connect, and not say why.
    const std::unique_ptr<SSL_CTX, Freed<SSL_CTX_free>> context(SSL_CTX_new(TLS_client_method()));
    const bool fits =
        SSL_CTX_use_certificate_chain_file(context.get(), tls.cert_file.c_str()) == 1 &&
        SSL_CTX_use_PrivateKey_file(context.get(), tls.key_file.c_str(), SSL_FILETYPE_PEM) == 1;
    ERR_clear_error();
    if (!fits) {
      return absl::InvalidArgumentError(absl::StrCat(tls.cert_file, " is no certificate, or ",
                                                     tls.key_file, " is not its private key"));
    }
  }
  return grpc::SslCredentials(options);
}

absl::Status ExplainNoConnection(const std::string& target, bool tls, const TlsOptions& options) {
  const auto peer = HostAndPortOf(target);
  if (!peer) return absl::OkStatus();
  const Handshake handshake = TryHandshake(*peer, options);
  if (!handshake.connected || handshake.silent) return absl::OkStatus();
  if (!tls) {
    if (!handshake.answered_with_tls) return absl::OkStatus();
    return Unavailable("TLS_EXPECTED", absl::StrCat("the server at ", target, " speaks TLS alone"));
  }
  if (!handshake.answered_with_tls) {
    return Unavailable("TLS_NOT_SPOKEN",
                       absl::StrCat("what listens at ", target, " does not speak TLS"));
  }
  if (!handshake.wrong_with_server.empty()) {
    return Unavailable("TLS_SERVER_UNKNOWN",
                       absl::StrCat("the certificate of the server at ", target,
                                    " is not accepted: ", handshake.wrong_with_server));
  }
  if (!handshake.refused_by_server.empty()) {
    return Unavailable("TLS_REFUSED",
                       absl::StrCat("the server at ", target,
                                    " refuses this client: ", handshake.refused_by_server));
  }
  return absl::OkStatus();
}

}  // namespace mneme::client
