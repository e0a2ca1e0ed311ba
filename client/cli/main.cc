// mneme: the command-line tool. One file per subcommand; this one has the global flags.
#include <algorithm>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "client/cli/command_line.h"
#include "client/cli/context.h"
#include "client/cli/defaults.h"

int main(int argc, char** argv) {
  std::setlocale(LC_ALL, "");
  // Exact bytes and one buffer: no mixing with stdio, and reads of long texts are fast.
  std::ios::sync_with_stdio(false);
  // gRPC's own log says nothing that our errors do not; GRPC_VERBOSITY=debug brings it back.
  setenv("GRPC_VERBOSITY", "none", /*overwrite=*/0);

  mneme::cli::Context context;
  // What is wrong with the file is said when a command needs it: help works without.
  const auto defaults = mneme::cli::ReadDefaults(mneme::cli::DefaultsFile());
  context.defaults = defaults.status();
  const mneme::cli::Defaults known = defaults.value_or(mneme::cli::Defaults{});
  context.server = known.server;
  context.tenant = known.tenant;
  if (std::getenv("MNEME_API_KEY") == nullptr) context.key_file = known.key_file;
  context.tls = {.ca_file = known.tls_ca, .cert_file = known.tls_cert, .key_file = known.tls_key};
  const char* model = std::getenv("MNEME_MODEL");
  context.default_model = model != nullptr && *model != '\0' ? model : known.model;

  CLI::App app("mneme: talk to a Mneme server, whose sessions keep what a model has read", "mneme");
  app.set_version_flag("--version", "mneme 0.1.0");
  app.fallthrough();  // global flags may stand after the subcommand
  app.require_subcommand(1);
  app.add_option("--server", context.server,
                 "Server as HOST, HOST:PORT, http://HOST:PORT, or https://HOST:PORT for TLS; port "
                 "7447 if left out")
      ->envname("MNEME_SERVER")
      ->take_last()
      ->capture_default_str();
  app.add_option("--tenant", context.tenant, "Tenant of short session names")
      ->envname("MNEME_TENANT")
      ->take_last()
      ->capture_default_str();
  const auto add_file = [&](const char* flag, std::string& file, const char* help,
                            const char* variable) {
    app.add_option(flag, file, help)->envname(variable)->take_last()->type_name("FILE");
  };
  add_file("--tls-ca", context.tls.ca_file,
           "TLS: authorities that the server's certificate may be from; default the system's",
           "MNEME_TLS_CA");
  add_file("--tls-cert", context.tls.cert_file, "TLS: certificate to show to the server",
           "MNEME_TLS_CERT");
  add_file("--tls-key", context.tls.key_file, "TLS: its private key", "MNEME_TLS_KEY");
  app.add_option("--key-file", context.key_file,
                 "File with the key to show to the server; default MNEME_API_KEY")
      ->take_last()
      ->type_name("FILE");
  app.add_flag("--plaintext-key", context.plaintext_key,
               "Send the key to another machine even without TLS");
  app.add_option("-o,--output", context.output, "table, json or name")
      ->check(CLI::IsMember({"table", "json", "name"}))
      ->capture_default_str();
  app.add_flag("--json", context.json_flag, "Same as -o json; streams are one JSON object a line");
  app.add_option("--timeout", context.timeout_s,
                 "Deadline of each call in seconds; default 60, none for calls that run a model")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--connect-timeout", context.connect_timeout_s,
                 "Wait so many seconds for a server that is not there yet")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_flag("-v,--verbose", context.verbose, "Token counts and times on stderr, request ids");

  mneme::cli::AddChat(app, context);
  mneme::cli::AddGenerate(app, context);
  mneme::cli::AddResume(app, context);
  mneme::cli::AddIngest(app, context);
  mneme::cli::AddSessions(app, context);
  mneme::cli::AddSnapshots(app, context);
  mneme::cli::AddExport(app, context);
  mneme::cli::AddImport(app, context);
  mneme::cli::AddModels(app, context);
  mneme::cli::AddStatus(app, context);
  mneme::cli::AddServer(app, context);
  mneme::cli::AddTokenize(app, context);
  mneme::cli::AddScore(app, context);
  mneme::cli::AddBench(app, context);
  mneme::cli::AddKeys(app, context);
  mneme::cli::AddHelp(app, context);
  // Last, because CLI11 lets later subcommands inherit it.
  app.footer(R"(
Start here (a server runs at --server):
  mneme models                              what the server has loaded
  mneme chat diary                          talk; the session diary is made and kept
  mneme ingest book.txt -s reader --create  let a session read a book
  mneme generate -s reader --chat "Who is the hero?"
  mneme COMMAND --help                      flags and examples of a command

A SESSION is an id such as diary, short for tenants/default/sessions/diary.

A flag wins over its variable (MNEME_SERVER, MNEME_TENANT, MNEME_MODEL, MNEME_TLS_CA, MNEME_TLS_CERT,
MNEME_TLS_KEY; MNEME_API_KEY), and that over the lines `server:`, `tenant:`, `model:`, `tls_ca:`,
`tls_cert:`, `tls_key:` and `key_file:` of ~/.config/mneme/config.yaml ($XDG_CONFIG_HOME/mneme).
NO_COLOR is respected.

Exit codes:
  0  done                     4  conflict: busy, changed meanwhile, or exists
  1  failed                   5  server unavailable, overloaded, or deadline passed
  2  wrong usage              6  refused: invalid, not allowed, or not possible in this state
  3  not found                130  interrupted (Ctrl-C)
Errors go to stderr, with --json as {"error": {"code", "reason", "message", "fields", ...}}; the code
is the server's, or USAGE (exit code 2) or LOCAL (1) if none was asked.
Text shown on a terminal has no control characters; a pipe or a file gets the exact bytes.)");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    // Help and version are "errors" too. The flags may not have been read when the wrong one came.
    const std::vector<std::string> args(argv + 1, argv + argc);
    const auto asked = [&](const char* flag) {
      return std::find(args.begin(), args.end(), flag) != args.end();
    };
    if (e.get_exit_code() == 0 && !mneme::cli::NamesNoCommand(app)) return app.exit(e);
    const bool json = asked("--json") || asked("json") || asked("--output=json");
    mneme::cli::SayError(json, "USAGE", mneme::cli::Explain(app, e));
    return mneme::cli::kUsage;
  }
  std::cout.flush();
  // A full disk or a closed pipe must not look like success.
  if (!std::cout && context.exit_code == mneme::cli::kOk) return mneme::cli::kFailed;
  return context.exit_code;
}
