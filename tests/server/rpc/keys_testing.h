// A file of keys for tests: the key of "acme-1" is "key-of-acme-1".
#pragma once

#include <grpcpp/client_context.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/core/keyring.h"

namespace mneme::server {

inline std::string KeyOf(const std::string& id) { return "key-of-" + id; }

// One entry of `keys:`; `more` are further lines, such as "models: [a]".
inline std::string KeyEntry(const std::string& id, const std::string& tenant,
                            const std::string& role, const std::string& more = "") {
  return absl::StrCat("  - id: ", id, "\n    sha256: ", absl::BytesToHexString(Sha256(KeyOf(id))),
                      "\n    tenant: ", tenant, "\n    role: ", role, "\n",
                      more.empty() ? "" : absl::StrCat("    ", more, "\n"));
}

inline std::string WriteKeys(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file, std::ios::trunc) << text;
  return file;
}

inline void ShowKey(grpc::ClientContext& context, const std::string& id) {
  if (!id.empty()) context.AddMetadata("authorization", "Bearer " + KeyOf(id));
}

}  // namespace mneme::server
