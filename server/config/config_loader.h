// Reads the server's Config: command-line flag > environment MNEME_* > file > built-in default.
//
// The file is YAML, in sections:
//
//   models:
//     smollm2: /models/smollm2.gguf
//   engine:
//     threads: 2
//   listen: {address: "127.0.0.1:7447"}
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/config.h"

namespace mneme::server {

// What main() returns.
enum ExitCode {
  kExitOk = 0,
  kExitFailure = 1,
  kExitUsage = 2,  // command line, environment, configuration file
  kExitModel = 3,
  kExitStore = 4,
  kExitPortInUse = 5,
};

struct LoadedConfig {
  Config config;
  // --help, --version or --print-config: print `output` and leave with kExitOk.
  bool print_and_exit = false;
  std::string output;
  std::vector<std::string> warnings;
};

// `arguments` without the program's name; `environment` as "NAME=value". Every error is
// INVALID_ARGUMENT and its message names flag, variable, or file and line, and the nearest valid
// key: the server leaves with kExitUsage.
absl::StatusOr<LoadedConfig> LoadConfig(const std::vector<std::string>& arguments,
                                        const std::vector<std::string>& environment);

// Keys of settings in which the two differ and that hold from the start to the end of a server;
// "models" among them. The others are reloaded on SIGHUP.
std::vector<std::string> SettingsThatNeedRestart(const Config& running, const Config& wanted);

// True for 127.0.0.0/8, ::1, localhost and unix sockets, as in "127.0.0.1:7447".
bool IsLoopbackAddress(const std::string& address);

}  // namespace mneme::server
