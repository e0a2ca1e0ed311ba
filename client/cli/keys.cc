// mneme keys: makes, lists and takes away the keys of a server that is given their file as
// auth.keys_file. No server is asked.
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <iostream>
#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/cli/context.h"
#include "client/cli/json.h"
#include "client/cli/keys_file.h"
#include "client/cli/output.h"

namespace mneme::cli {
namespace {

constexpr char kNext[] = "the server takes this over on SIGHUP (systemctl reload mneme)";

std::string RandomBytes(size_t count) {
  std::string bytes(count, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(count)) != 1) {
    std::abort();  // no entropy: nothing that is made now would be a secret
  }
  return bytes;
}

// 256 random bits, with a beginning that scanners for leaked secrets can look for.
std::string NewKey() {
  std::string key = absl::WebSafeBase64Escape(RandomBytes(32));
  while (key.back() == '=') key.pop_back();
  return "mneme_" + key;
}

std::string Sha256Hex(const std::string& text) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return absl::BytesToHexString(digest);
}

int FailFile(const Context& context, const absl::Status& status) {
  const int code = ExitCodeOf(status);
  context.FailHere(std::string(status.message()));
  return absl::IsInternal(status) ? kFailed : code;
}

struct CreateFlags {
  std::string id, role = "user", expires;
  std::vector<std::string> models;
};

int Create(const Context& context, const std::string& file, const CreateFlags& flags) {
  if (auto tenant = client::TenantName(context.tenant); !tenant.ok()) {
    return context.FailUsage(std::string(tenant.status().message()));
  }
  KeyEntry entry{.id = flags.id,
                 .sha256 = {},
                 .identity = {},
                 .tenant = context.tenant,
                 .role = flags.role,
                 .models = flags.models,
                 .not_after = {}};
  if (entry.id.empty()) {
    entry.id =
        absl::StrCat(context.tenant.substr(0, 50), "-", absl::BytesToHexString(RandomBytes(4)));
  }
  if (!client::IsId(entry.id)) {
    return context.FailUsage(absl::StrCat("bad id '", entry.id, "': expected ids such as acme-1"));
  }
  for (std::string& model : entry.models) {
    model = std::string(client::IdOf(model));
    if (!client::IsId(model)) return context.FailUsage(absl::StrCat("bad model '", model, "'"));
  }
  if (!flags.expires.empty()) {
    const auto span = ParseSpan(flags.expires);
    if (!span.ok()) return context.FailUsage(std::string(span.status().message()));
    entry.not_after = absl::FormatTime(
        "%Y-%m-%dT%H:%M:%SZ", absl::Now() + absl::Seconds(span->seconds()), absl::UTCTimeZone());
  }
  const std::string key = NewKey();
  entry.sha256 = Sha256Hex(key);
  if (absl::Status status = AddKeyEntry(file, entry); !status.ok()) {
    return FailFile(context, status);
  }
  if (context.json()) {
    std::cout << Dump(Json{{"id", entry.id},
                           {"key", key},
                           {"tenant", entry.tenant},
                           {"role", entry.role},
                           {"not_after", entry.not_after}})
              << "\n";
    return kOk;
  }
  std::cout << key << "\n";
  std::cerr << Dim(absl::StrCat("key ", entry.id, " of tenant ", entry.tenant, ", role ",
                                entry.role, ": shown this once, and kept nowhere; ", kNext))
            << "\n";
  return kOk;
}

int List(const Context& context, const std::string& file) {
  const auto entries = ReadKeyEntries(file);
  if (!entries.ok()) return FailFile(context, entries.status());
  Table table({"ID", "TENANT", "ROLE", "MODELS", "NOT AFTER", "CERTIFICATE"});
  Json all = Json::array();
  for (const KeyEntry& entry : *entries) {
    if (context.names_only()) std::cout << entry.id << "\n";
    all.push_back({{"id", entry.id},
                   {"tenant", entry.tenant},
                   {"role", entry.role},
                   {"models", entry.models},
                   {"not_after", entry.not_after},
                   {"certificate", entry.identity}});
    table.Add({entry.id, entry.tenant, entry.role,
               entry.models.empty() ? "all" : absl::StrJoin(entry.models, ","),
               entry.not_after.empty() ? "-" : entry.not_after,
               entry.identity.empty() ? "-" : entry.identity});
  }
  if (context.json()) {
    std::cout << Dump(Json{{"keys", all}}) << "\n";
  } else if (!context.names_only()) {
    table.Print(std::cout);
  }
  return kOk;
}

int Revoke(const Context& context, const std::string& file, const std::string& id) {
  if (absl::Status status = RemoveKeyEntry(file, id); !status.ok()) {
    return FailFile(context, status);
  }
  std::cerr << Dim(absl::StrCat(id, " is taken away; ", kNext)) << "\n";
  return kOk;
}

}  // namespace

void AddKeys(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("keys", "Make, list and take away keys of a server");
  command->require_subcommand(1);
  auto file = std::make_shared<std::string>();
  command->add_option("-f,--file", *file, "File of the keys: the server's auth.keys_file")
      ->envname("MNEME_AUTH_KEYS_FILE")
      ->required()
      ->type_name("FILE");

  auto* create = command->add_subcommand("create", "Make a key of --tenant, and print it once");
  auto flags = std::make_shared<CreateFlags>();
  create->add_option("--id", flags->id, "What logs call it; default TENANT-RANDOM");
  create->add_option("--role", flags->role, "reader, user, admin (of all tenants) or metrics")
      ->check(CLI::IsMember({"reader", "user", "admin", "metrics"}))
      ->capture_default_str();
  create->add_option("--models", flags->models, "Models that it may use; default all")
      ->delimiter(',');
  create->add_option("--expires", flags->expires,
                     "How long it is valid, such as 90d; default ever");
  create->footer(R"(
Examples:
  mneme keys create -f keys.yaml --tenant acme >acme.key
  mneme keys create -f keys.yaml --tenant acme --role reader --models smollm2 --expires 90d)");
  create->callback([&context, file, flags] { context.exit_code = Create(context, *file, *flags); });

  auto* list = command->add_subcommand("list", "Show who may call");
  list->footer("\nExample:\n  mneme keys list -f keys.yaml");
  list->callback([&context, file] { context.exit_code = List(context, *file); });

  auto* revoke = command->add_subcommand("revoke", "Take a key away");
  auto id = std::make_shared<std::string>();
  revoke->add_option("ID", *id, "As `mneme keys list` shows it")->required();
  revoke->footer("\nExample:\n  mneme keys revoke -f keys.yaml acme-1");
  revoke->callback([&context, file, id] { context.exit_code = Revoke(context, *file, *id); });

  // After the subcommands, because CLI11 lets later ones inherit it.
  command->footer(R"(
The file has the SHA-256 of each key, never the key. A tenant may have several: make the new one, give
it to whoever calls, revoke the old one. The server reads the file again on SIGHUP; calls that run go on.

Examples:
  mneme keys create -f keys.yaml --tenant acme >acme.key
  mneme keys list -f keys.yaml
  mneme keys revoke -f keys.yaml acme-1)");
}

}  // namespace mneme::cli
