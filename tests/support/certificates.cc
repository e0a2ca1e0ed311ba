#include "tests/support/certificates.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/child_process.h"

namespace mneme::test {
namespace {

void OpenSsl(const std::filesystem::path& folder, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "/usr/bin/openssl");
  const ChildProcess::Result result =
      ChildProcess::Run({.command = std::move(arguments), .folder = folder, .name = "openssl"});
  EXPECT_EQ(result.code, 0) << result.out << result.err;
}

CertificateFiles FilesOf(const std::filesystem::path& folder, const std::string& name) {
  return {folder / (name + ".pem"), folder / (name + ".key")};
}

}  // namespace

CertificateAuthority::CertificateAuthority(std::filesystem::path folder, const std::string& name)
    : folder_(std::move(folder)), files_(FilesOf(folder_, name)) {
  OpenSsl(folder_, {"req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                    "-nodes", "-keyout", files_.key, "-out", files_.certificate, "-subj",
                    "/CN=" + name, "-days", "2"});
}

CertificateFiles CertificateAuthority::Issue(const std::string& name,
                                             const std::string& alternative_names, int days) const {
  const CertificateFiles files = FilesOf(folder_, name);
  const std::string request = folder_ / (name + ".csr");
  OpenSsl(folder_, {"req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                    "-nodes", "-keyout", files.key, "-out", request, "-subj", "/CN=" + name,
                    "-addext", "subjectAltName=" + alternative_names});
  OpenSsl(folder_,
          {"x509", "-req", "-in", request, "-CA", files_.certificate, "-CAkey", files_.key,
           "-copy_extensions", "copy", "-days", absl::StrCat(days), "-out", files.certificate});
  return files;
}

}  // namespace mneme::test
