// What a person always wants, from the tool's own file:
//
//   server: 127.0.0.1:7447
//   tenant: default
//   model: smollm2
//   tls_ca: ca.pem        likewise tls_cert and tls_key
//   key_file: mneme.key
//
// A flag wins over a variable (MNEME_SERVER, MNEME_TLS_CA, ...), a variable over the file.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace mneme::cli {

struct Defaults {
  std::string server = "127.0.0.1:7447";
  std::string tenant = "default";
  std::string model;  // "": the server's only one
  std::string tls_ca, tls_cert, tls_key;
  std::string key_file;
};

// $XDG_CONFIG_HOME/mneme/config.yaml, or under ~/.config; "" if there is no home.
std::string DefaultsFile();

// The built-in ones if there is no such file. kInvalidArgument, with file and line, if it has an
// unknown key or a value that is none.
absl::StatusOr<Defaults> ReadDefaults(const std::string& file);

}  // namespace mneme::cli
