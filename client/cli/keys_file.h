// Changes to the file of keys that a server reads (auth.keys_file; docs/security.md): one entry is
// put in or taken out, and every other line stays as somebody wrote it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace mneme::cli {

struct KeyEntry {
  std::string id;
  std::string sha256;    // of a key, in hexadecimal digits; "" of a certificate
  std::string identity;  // of a certificate: SPIFFE id or DNS name
  std::string tenant, role;
  std::vector<std::string> models;  // none: every one
  std::string not_after;            // "": never
};

// All of them, as far as they are entries at all: what is wrong with one is for the server to say.
// kNotFound if there is no such file, kInvalidArgument if it is no YAML.
absl::StatusOr<std::vector<KeyEntry>> ReadKeyEntries(const std::string& file);

// One at a time, whoever else does the same; the file is replaced whole, or not at all. It is made
// with mode 0600 if there is none, and keeps owner and group otherwise. kAlreadyExists or kNotFound
// by id; kFailedPrecondition if it is written in a way that cannot be edited so.
absl::Status AddKeyEntry(const std::string& file, const KeyEntry& entry);
absl::Status RemoveKeyEntry(const std::string& file, const std::string& id);

}  // namespace mneme::cli
