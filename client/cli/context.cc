#include "client/cli/context.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "client/cli/defaults.h"
#include "client/cli/json.h"
#include "client/cli/output.h"

namespace mneme::cli {
namespace {

// What a person can do about it, by reason or else by code. SESSION stands for the one it is about.
std::string HintFor(const client::Error& error, const std::string& server) {
  static const auto& kByReason = *new std::map<std::string, const char*>{
      {"SESSION_NOT_FOUND",
       "see `mneme sessions list`, or make it: `mneme sessions create SESSION`"},
      {"SNAPSHOT_NOT_FOUND", "see `mneme sessions snapshots SESSION`"},
      {"MODEL_NOT_FOUND", "see `mneme models`"},
      {"SESSION_EXISTS",
       "take another name, go on with that session, or free the name if it is no longer needed: "
       "`mneme sessions delete SESSION --purge`"},
      {"SESSION_BUSY", "another turn runs on this session: wait for it, or add --queue"},
      {"VERSION_MISMATCH", "the session has changed: look with `mneme sessions get SESSION`"},
      {"VERSION_REGRESSED",
       "see what is left of it: `mneme sessions show SESSION`, and go on from there"},
      {"SESSION_DELETED", "bring it back: `mneme sessions undelete SESSION`"},
      {"SESSION_DAMAGED",
       "rewind it to a good snapshot: `mneme sessions snapshots SESSION`, then "
       "`mneme sessions rewind SESSION --to-snapshot ID`"},
      {"NO_CHAT_TEMPLATE", "give plain text instead; `mneme models get MODEL` says why"},
      {"INPUT_TOO_LONG", "feed long texts with `mneme ingest FILE --session SESSION`"},
      {"REQUEST_TOO_LARGE", "feed long texts with `mneme ingest FILE --session SESSION`"},
      {"CONTEXT_FULL",
       "rewind it: `mneme sessions rewind SESSION --to-position N`, or start another session"},
      {"QUOTA_REQUESTS", "your tenant has as many calls under way as it may: let one end"},
      {"QUOTA_TOKENS", "your tenant has spent its tokens of a minute: try again when told"},
      {"QUOTA_SESSIONS",
       "your tenant keeps as many sessions as it may: free some by `mneme sessions delete SESSION "
       "--purge`; deleted ones count until they are purged"},
      {"QUOTA_BYTES",
       "your tenant keeps as many bytes as it may: free some by `mneme sessions delete SESSION "
       "--purge`; deleted ones count until they are purged"},
      {"DRAINING", "the server is shutting down: try again in a moment"},
      {"STORE_FULL", "the server's disk is full; deleting sessions still works"},
      {"CREDENTIALS_INVALID",
       "give a key that the server knows, by --key-file FILE or MNEME_API_KEY; it may have been "
       "revoked or have expired"},
      {"ACCESS_DENIED",
       "names are of the tenant that --tenant or MNEME_TENANT says; a key may be for another "
       "tenant, for some models, or for reading alone"},
      {"TLS_EXPECTED",
       "write --server https://HOST:PORT, and --tls-ca FILE for an authority of your own"},
      {"TLS_NOT_SPOKEN", "write --server http://HOST:PORT if plain text will do"},
      {"TLS_SERVER_UNKNOWN",
       "--tls-ca FILE names the authority that it is from; the server must be called by a name or "
       "address that the certificate has"},
      {"TLS_REFUSED",
       "show a certificate of an authority that the server knows: --tls-cert FILE --tls-key FILE"},
      {"STORE_NOT_DURABLE",
       "the server's database could lose what it writes now, so nothing is written; whoever runs "
       "it must look at its standbys"},
      {"STREAM_RESET",
       "a proxy on the way may limit how much or how long one call may send (nginx: "
       "client_max_body_size 0, and its timeouts)"},
      {"HTTP_STATUS",
       "whoever runs the proxy can see in its log why; or give the server's own "
       "address with --server HOST:PORT"},
  };
  if (error.reason == "REQUEST_TOO_LARGE" && !error.metadata.contains("max_request_bytes")) {
    return "let whoever runs the proxy raise its limit (nginx: client_max_body_size 0), which a "
           "`mneme ingest` of a long text needs too";
  }
  const bool no_model =
      error.reason == "FIELD_REQUIRED" && !error.fields.empty() &&
      (error.fields[0].field == "model" || error.fields[0].field == "session.model");
  if (no_model) {
    const std::string file = DefaultsFile();
    return absl::StrCat("name it with --model NAME",
                        file.empty() ? " or MNEME_MODEL"
                                     : absl::StrCat(", MNEME_MODEL, or `model: NAME` in ", file));
  }
  if (auto it = kByReason.find(error.reason); it != kByReason.end()) return it->second;
  if (error.outcome_unknown) {
    return "the connection broke before the answer: the call may have happened, so look before "
           "repeating it (`mneme sessions get SESSION`)";
  }
  if (error.code == absl::StatusCode::kUnavailable && error.reason.empty()) {
    return absl::StrCat("is a server running at ", server,
                        "? Start one with `mneme-server`, or name another with --server HOST:PORT "
                        "or MNEME_SERVER");
  }
  if (error.code == absl::StatusCode::kDeadlineExceeded) return "give it longer with --timeout";
  return "";
}

std::string Hint(const client::Error& error, const Context& context) {
  const std::string hint = HintFor(error, context.server);
  if (!absl::StrContains(error.resource, "/sessions/")) return hint;
  const std::string session(client::SessionOf(error.resource));
  return absl::StrReplaceAll(hint, {{"SESSION", context.Short(session)}});
}

// The server's words, with the name of what they are about and every field that they leave out.
std::string Describe(const client::Error& error, const Context& context) {
  const std::string name = context.Short(error.resource);
  const bool named = name.empty() || absl::StrContains(error.message, name);
  std::string text = absl::StrCat("mneme: ", named ? "" : absl::StrCat(name, ": "), error.message,
                                  " (", absl::StatusCodeToString(error.code),
                                  error.reason.empty() ? "" : " ", error.reason, ")\n");
  for (const auto& f : error.fields) {
    if (absl::StrContains(error.message, absl::StrCat(f.field, " ", f.description))) continue;
    absl::StrAppend(&text, "  field ", f.field, ": ", f.description, "\n");
  }
  for (const auto& [key, value] : error.metadata) {
    absl::StrAppend(&text, "  ", key, ": ", value, "\n");
  }
  if (error.retry_delay) {
    absl::StrAppend(&text, "  retry after: ", absl::FormatDuration(*error.retry_delay), "\n");
  }
  return text;
}

// The first word of the file, or what MNEME_API_KEY says if there is none.
absl::StatusOr<std::string> ReadKey(const std::string& file) {
  std::string key;
  if (file.empty()) {
    const char* variable = std::getenv("MNEME_API_KEY");
    return variable == nullptr ? "" : variable;
  }
  std::ifstream in(file);
  in >> key;
  if (key.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file of the key, ", file, ", cannot be read or is empty"));
  }
  return key;
}

}  // namespace

void SayError(bool json, const char* code, const std::string& message) {
  if (json) {
    std::cerr << Dump(Json{{"error", {{"code", code}, {"reason", ""}, {"message", message}}}})
              << "\n";
  } else {
    std::cerr << "mneme: " << TerminalSafe(message) << "\n";
  }
}

int ExitCodeOf(const absl::Status& status) {
  // gRPC's code for a message over the limit is the one for a server that is overloaded.
  if (client::ErrorOf(status).reason == "REQUEST_TOO_LARGE") return kRefused;
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kOk;
    case absl::StatusCode::kNotFound:
      return kNotFound;
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kAlreadyExists:
      return kConflict;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
      return kUnavailable;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kRefused;
    default:
      return kFailed;
  }
}

std::string Context::Short(const std::string& name) const {
  const std::string own = absl::StrCat("tenants/", tenant, "/sessions/");
  return std::string(absl::StripPrefix(name, own));
}

absl::StatusOr<client::Client> Context::Connect() const {
  if (!defaults.ok()) return defaults;
  client::Options options;
  options.server = server;
  options.tenant = tenant;
  options.tls = tls;
  auto key = ReadKey(key_file);
  if (!key.ok()) return key.status();
  options.api_key = *std::move(key);
  options.plaintext_key = plaintext_key;
  options.connect_timeout = absl::Seconds(connect_timeout_s);
  if (timeout_s > 0) options.timeout = options.work_timeout = absl::Seconds(timeout_s);
  return client::Client::Connect(options);
}

int Context::Fail(const absl::Status& status) const {
  const client::Error error = client::ErrorOf(status);
  const std::string code = absl::StatusCodeToString(error.code);
  const std::string hint = Hint(error, *this);
  if (json()) {
    Json j = {{"code", code}, {"reason", error.reason}, {"message", error.message}};
    j["fields"] = Json::array();
    for (const auto& f : error.fields) {
      j["fields"].push_back({{"field", f.field}, {"description", f.description}});
    }
    j["metadata"] = error.metadata;
    if (error.retry_delay) j["retry_delay_ms"] = absl::ToInt64Milliseconds(*error.retry_delay);
    if (!error.resource.empty()) j["resource"] = error.resource;
    j["request_id"] = error.request_id;
    j["outcome_unknown"] = error.outcome_unknown;
    if (!hint.empty()) j["hint"] = hint;
    std::cerr << Dump(Json{{"error", j}}) << "\n";
    return ExitCodeOf(status);
  }
  std::string text = Describe(error, *this);
  if (!hint.empty()) absl::StrAppend(&text, "  hint: ", hint, "\n");
  if (verbose && !error.request_id.empty()) {
    absl::StrAppend(&text, "  request id: ", error.request_id, "\n");
  }
  std::cerr << TerminalSafe(text);
  return ExitCodeOf(status);
}

int Context::FailUsage(const std::string& message) const {
  SayError(json(), "USAGE", message);
  return kUsage;
}

int Context::FailHere(const std::string& message) const {
  SayError(json(), "LOCAL", message);
  return kFailed;
}

void AddModelFlag(CLI::App& command, std::string& model, const char* help) {
  command.add_option("-m,--model", model,
                     absl::StrCat(help, "; default: MNEME_MODEL, or the server's only one"));
}

void OnRun(CLI::App* command, Context& context, std::function<int(client::Client&)> body) {
  command->callback([command, &context, body = std::move(body)] {
    if (!command->get_subcommands().empty()) return;
    auto client = context.Connect();
    if (absl::IsInvalidArgument(client.status())) {
      context.exit_code = context.FailUsage(std::string(client.status().message()));
    } else {
      context.exit_code = client.ok() ? body(*client) : context.Fail(client.status());
    }
  });
}

}  // namespace mneme::cli
