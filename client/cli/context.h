// What every subcommand shares: the global flags, the connection, and how a command ends.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/client.h"

namespace mneme::cli {

// Exit codes, as --help states them.
enum ExitCode {
  kOk = 0,
  kFailed = 1,
  kUsage = 2,
  kNotFound = 3,
  kConflict = 4,
  kUnavailable = 5,
  kRefused = 6,
  kInterrupted = 130,
};
int ExitCodeOf(const absl::Status& status);

// An error that no server sent; `code` as in --json.
void SayError(bool json, const char* code, const std::string& message);

struct Context {
  std::string server, tenant;
  client::TlsOptions tls;
  std::string key_file;  // the key itself is never an argument, which every user of a machine sees
  bool plaintext_key = false;
  std::string default_model;     // of commands that have no flag for it; "": the server's only one
  absl::Status defaults;         // why the file of defaults could not be read
  std::string output = "table";  // table | json | name
  bool json_flag = false;
  bool verbose = false;
  double timeout_s = 0;  // 0: the library's defaults
  double connect_timeout_s = 3;
  int exit_code = kOk;

  bool json() const { return json_flag || output == "json"; }
  bool names_only() const { return !json() && output == "name"; }

  // The model of a request that no session decides: `flag`, or else the default.
  const std::string& ModelOr(const std::string& flag) const {
    return flag.empty() ? default_model : flag;
  }
  // What is shown of a session's name: its id if it is of the own tenant.
  std::string Short(const std::string& name) const;
  absl::StatusOr<client::Client> Connect() const;
  // Says on stderr what went wrong and what to do, and returns the exit code.
  int Fail(const absl::Status& status) const;
  int FailUsage(const std::string& message) const;
  // Not the server's fault: a file of the caller's.
  int FailHere(const std::string& message) const;
};

// Adds -m,--model, which `help` describes.
void AddModelFlag(CLI::App& command, std::string& model, const char* help = "Model to run");

// Makes `command`, if none of its own commands is given, run `body` with a connected client; its
// result is the exit code.
void OnRun(CLI::App* command, Context& context, std::function<int(client::Client&)> body);

// Each adds its subcommand to `app`.
void AddChat(CLI::App& app, Context& context);
void AddGenerate(CLI::App& app, Context& context);
void AddResume(CLI::App& app, Context& context);
void AddIngest(CLI::App& app, Context& context);
void AddSessions(CLI::App& app, Context& context);
void AddModels(CLI::App& app, Context& context);
void AddStatus(CLI::App& app, Context& context);
void AddTokenize(CLI::App& app, Context& context);
void AddScore(CLI::App& app, Context& context);
void AddBench(CLI::App& app, Context& context);
void AddKeys(CLI::App& app, Context& context);
void AddServer(CLI::App& app, Context& context);
void AddSnapshots(CLI::App& app, Context& context);
void AddExport(CLI::App& app, Context& context);
void AddImport(CLI::App& app, Context& context);

}  // namespace mneme::cli
