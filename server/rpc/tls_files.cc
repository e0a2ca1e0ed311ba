#include "server/rpc/tls_files.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::server {
namespace {

template <auto Free>
struct Freed {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Bio = std::unique_ptr<BIO, Freed<BIO_free>>;
using Key = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Freed<X509_free>>;

// The certificates that a system trusts are a quarter of it.
constexpr size_t kMaxFileBytes = 1 << 20;

// A setting and its file, for messages.
struct Source {
  const char* setting;
  const std::string& path;

  absl::Status Bad(const std::string& why) const {
    return absl::InvalidArgumentError(absl::StrCat(setting, " ", path, ": ", why));
  }
};

absl::StatusOr<std::string> Read(const Source& source) {
  std::ifstream file(source.path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  // A folder opens, and fails when it is read.
  if (!file.is_open() || file.bad()) {
    return source.Bad(absl::StrCat("cannot be read: ", std::strerror(errno)));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) return source.Bad("is too large to be what it should");
  return text;
}

absl::Status CheckTimes(const Source& source, X509* certificate) {
  if (X509_cmp_current_time(X509_get0_notAfter(certificate)) <= 0) {
    return source.Bad("the certificate has expired");
  }
  if (X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0) {
    return source.Bad("the certificate is not valid yet; is this machine's clock right?");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Certificate>> ParseCertificates(const Source& source,
                                                           const std::string& pem) {
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  std::vector<Certificate> certificates;
  while (X509* next = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(next);
  }
  const bool whole = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (certificates.empty() || !whole) return source.Bad("must hold certificates in PEM form");
  return certificates;
}

absl::StatusOr<Key> ParseKey(const Source& source, const std::string& pem) {
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  // OpenSSL would ask the terminal for a passphrase.
  const auto no_passphrase = [](char*, int, int, void*) { return -1; };
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr));
  ERR_clear_error();
  if (key == nullptr) return source.Bad("must hold a private key in PEM form, without passphrase");
  return key;
}

}  // namespace

absl::StatusOr<TlsFiles> ReadTlsFiles(const Config::Listen::Tls& tls) {
  const Source cert{"listen.tls.cert", tls.cert};
  const Source key{"listen.tls.key", tls.key};
  const Source client_ca{"listen.tls.client_ca", tls.client_ca};
  TlsFiles files;
  files.stamp = TlsFilesStamp(tls);
  MNEME_ASSIGN_OR_RETURN(files.certificate_chain, Read(cert));
  MNEME_ASSIGN_OR_RETURN(files.private_key, Read(key));
  MNEME_ASSIGN_OR_RETURN(const auto chain, ParseCertificates(cert, files.certificate_chain));
  MNEME_ASSIGN_OR_RETURN(const Key private_key, ParseKey(key, files.private_key));
  if (X509_check_private_key(chain.front().get(), private_key.get()) != 1) {
    ERR_clear_error();
    return key.Bad(absl::StrCat("is not the key of the first certificate in ", tls.cert));
  }
  MNEME_RETURN_IF_ERROR(CheckTimes(cert, chain.front().get()));
  if (!tls.client_ca.empty()) {
    MNEME_ASSIGN_OR_RETURN(files.client_roots, Read(client_ca));
    MNEME_RETURN_IF_ERROR(ParseCertificates(client_ca, files.client_roots).status());
  }
  return files;
}

std::string TlsFilesStamp(const Config::Listen::Tls& tls) {
  std::string stamp;
  for (const std::string* path : {&tls.cert, &tls.key, &tls.client_ca}) {
    struct stat found = {};
    if (path->empty() || stat(path->c_str(), &found) != 0) found = {};
    absl::StrAppend(&stamp, found.st_dev, ":", found.st_ino, ":", found.st_size, ":",
                    found.st_mtim.tv_sec, ".", found.st_mtim.tv_nsec, " ");
  }
  return stamp;
}

}  // namespace mneme::server
