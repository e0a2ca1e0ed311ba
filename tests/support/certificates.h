// Certificates for tests, made by openssl when they are needed: none of them is in the tree, and
// none gets old.
#pragma once

#include <filesystem>
#include <string>

namespace mneme::test {

// PEM files.
struct CertificateFiles {
  std::filesystem::path certificate, key;
};

// An authority of its own. Files go to `folder`, which must outlive it.
class CertificateAuthority {
 public:
  explicit CertificateAuthority(std::filesystem::path folder, const std::string& name = "ca");

  const std::filesystem::path& certificate() const { return files_.certificate; }

  // <name>.pem and <name>.key, anew if they are there. `alternative_names` as openssl writes them.
  // A negative number of days makes one that has expired.
  CertificateFiles Issue(const std::string& name,
                         const std::string& alternative_names = "DNS:localhost,IP:127.0.0.1",
                         int days = 2) const;

 private:
  const std::filesystem::path folder_;
  CertificateFiles files_;
};

}  // namespace mneme::test
