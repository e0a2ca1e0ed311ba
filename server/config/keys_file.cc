#include "server/config/keys_file.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/core/status_macros.h"
#include "server/config/byte_size.h"
#include "server/core/resource_id.h"

namespace mneme::server {
namespace {

// Some ten thousand keys.
constexpr size_t kMaxFileBytes = 4 << 20;
constexpr int64_t kMaxWeight = 1000;

const std::map<std::string, Role>& Roles() {
  static const auto& roles = *new std::map<std::string, Role>{{"admin", Role::kAdmin},
                                                              {"metrics", Role::kMetrics},
                                                              {"reader", Role::kReader},
                                                              {"user", Role::kUser}};
  return roles;
}

class KeysFile {
 public:
  explicit KeysFile(const std::string& path) : path_(path) {}

  absl::StatusOr<std::shared_ptr<const Keyring>> Read() {
    std::ifstream file(path_, std::ios::binary);
    std::string text(kMaxFileBytes + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (!file.is_open() || file.bad()) {
      return Bad(YAML::Mark::null_mark(), absl::StrCat("cannot be read: ", std::strerror(errno)));
    }
    text.resize(static_cast<size_t>(file.gcount()));
    if (text.size() > kMaxFileBytes) return Bad(YAML::Mark::null_mark(), "is too large");
    try {
      MNEME_RETURN_IF_ERROR(ReadRoot(YAML::Load(text)));
    } catch (const YAML::Exception& e) {
      return Bad(e.mark, e.msg);
    }
    return keyring_;
  }

 private:
  using Fields = std::map<std::string, YAML::Node>;

  absl::Status Bad(const YAML::Mark& mark, const std::string& why) const {
    return absl::InvalidArgumentError(
        absl::StrCat("auth.keys_file ", path_,
                     mark.is_null() ? "" : absl::StrCat(":", mark.line + 1), ": ", why));
  }

  // The fields of a mapping, none of which is unknown or written twice.
  absl::StatusOr<Fields> FieldsOf(const YAML::Node& node, const std::vector<std::string>& known) {
    if (!node.IsMap()) {
      return Bad(node.Mark(), absl::StrCat("must be a mapping of ", absl::StrJoin(known, ", ")));
    }
    Fields fields;
    for (const auto& entry : node) {
      const std::string name = entry.first.as<std::string>();
      if (std::find(known.begin(), known.end(), name) == known.end()) {
        return Bad(entry.first.Mark(), absl::StrCat("unknown key \"", name, "\"; there are ",
                                                    absl::StrJoin(known, ", ")));
      }
      if (!fields.emplace(name, entry.second).second) {
        return Bad(entry.first.Mark(), absl::StrCat(name, " is written twice"));
      }
    }
    return fields;
  }

  // "" if it is absent.
  absl::StatusOr<std::string> TextOf(const Fields& fields, const std::string& name) {
    const auto found = fields.find(name);
    if (found == fields.end()) return "";
    if (!found->second.IsScalar()) {
      return Bad(found->second.Mark(), absl::StrCat(name, " must be a single value"));
    }
    return found->second.Scalar();
  }

  absl::Status ReadRoot(const YAML::Node& root) {
    if (root.IsNull()) return absl::OkStatus();
    MNEME_ASSIGN_OR_RETURN(const Fields sections,
                           FieldsOf(root, {"keys", "certificates", "tenants"}));
    MNEME_RETURN_IF_ERROR(ReadList(sections, "tenants", &KeysFile::ReadTenant));
    MNEME_RETURN_IF_ERROR(ReadList(sections, "keys", &KeysFile::ReadKey));
    return ReadList(sections, "certificates", &KeysFile::ReadCertificate);
  }

  absl::Status ReadList(const Fields& sections, const std::string& name,
                        absl::Status (KeysFile::*read)(const YAML::Node&)) {
    const auto found = sections.find(name);
    if (found == sections.end() || found->second.IsNull()) return absl::OkStatus();
    const YAML::Node& list = found->second;
    if (!list.IsSequence()) return Bad(list.Mark(), absl::StrCat(name, " must be a list"));
    for (const YAML::Node& entry : list) MNEME_RETURN_IF_ERROR((this->*read)(entry));
    return absl::OkStatus();
  }

  absl::Status ReadTenant(const YAML::Node& node) {
    MNEME_ASSIGN_OR_RETURN(
        const Fields fields,
        FieldsOf(node, {"id", "running", "tokens_per_minute", "sessions", "bytes", "weight"}));
    MNEME_ASSIGN_OR_RETURN(const std::string id, TextOf(fields, "id"));
    if (!IsValidId(id)) {
      return Bad(node.Mark(), absl::StrCat("id of a tenant must match "
                                           "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$, is \"",
                                           id, "\""));
    }
    TenantLimits limits;
    MNEME_RETURN_IF_ERROR(ReadLimit(fields, id, "running", limits.running));
    MNEME_RETURN_IF_ERROR(ReadLimit(fields, id, "tokens_per_minute", limits.tokens_per_minute));
    MNEME_RETURN_IF_ERROR(ReadLimit(fields, id, "sessions", limits.sessions));
    MNEME_RETURN_IF_ERROR(ReadBytes(fields, id, limits.bytes));
    MNEME_RETURN_IF_ERROR(ReadWeight(fields, id, limits.weight));
    if (!limits_.emplace(id, limits).second) {
      return Bad(node.Mark(), absl::StrCat("tenant \"", id, "\" is given twice"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadLimit(const Fields& fields, const std::string& tenant, const std::string& name,
                         int64_t& limit) {
    if (!fields.contains(name)) return absl::OkStatus();
    MNEME_ASSIGN_OR_RETURN(const std::string text, TextOf(fields, name));
    if (!absl::SimpleAtoi(text, &limit) || limit < 0) {
      return Bad(fields.at(name).Mark(),
                 absl::StrCat(name, " of tenant \"", tenant,
                              "\" must be a whole number, 0 for no limit, is \"", text, "\""));
    }
    return absl::OkStatus();
  }

  absl::Status ReadBytes(const Fields& fields, const std::string& tenant, int64_t& bytes) {
    if (!fields.contains("bytes")) return absl::OkStatus();
    MNEME_ASSIGN_OR_RETURN(const std::string text, TextOf(fields, "bytes"));
    const std::optional<int64_t> size = ParseByteSize(text);
    if (!size) {
      return Bad(fields.at("bytes").Mark(),
                 absl::StrCat("bytes of tenant \"", tenant, "\" must be ", kByteSizeForm,
                              ", 0 for no limit, is \"", text, "\""));
    }
    bytes = *size;
    return absl::OkStatus();
  }

  absl::Status ReadWeight(const Fields& fields, const std::string& tenant, int64_t& weight) {
    if (!fields.contains("weight")) return absl::OkStatus();
    MNEME_ASSIGN_OR_RETURN(const std::string text, TextOf(fields, "weight"));
    if (!absl::SimpleAtoi(text, &weight) || weight < 1 || weight > kMaxWeight) {
      return Bad(fields.at("weight").Mark(),
                 absl::StrCat("weight of tenant \"", tenant, "\" must be a whole number in [1, ",
                              kMaxWeight, "], is \"", text, "\""));
    }
    return absl::OkStatus();
  }

  absl::Status ReadKey(const YAML::Node& node) {
    MNEME_ASSIGN_OR_RETURN(const Fields fields, FieldsOf(node, {"id", "sha256", "tenant", "role",
                                                                "models", "not_after"}));
    MNEME_ASSIGN_OR_RETURN(CallerPtr caller, ReadCaller(node, fields));
    MNEME_ASSIGN_OR_RETURN(const std::string hex, TextOf(fields, "sha256"));
    if (hex.size() != 64 || !std::all_of(hex.begin(), hex.end(), absl::ascii_isxdigit)) {
      return Bad(node.Mark(),
                 absl::StrCat("sha256 of key \"", caller->id, "\" must be 64 hexadecimal digits"));
    }
    const std::string digest = absl::HexStringToBytes(hex);
    if (digest == Sha256("")) {  // of a variable that was not set: it would let everybody in
      return Bad(node.Mark(),
                 absl::StrCat("sha256 of key \"", caller->id, "\" is that of no text"));
    }
    if (!digests_.insert(digest).second) {
      return Bad(node.Mark(),
                 absl::StrCat("key \"", caller->id, "\" has the sha256 of another one"));
    }
    keyring_->AddKey(digest, std::move(caller));
    return absl::OkStatus();
  }

  absl::Status ReadCertificate(const YAML::Node& node) {
    MNEME_ASSIGN_OR_RETURN(const Fields fields, FieldsOf(node, {"id", "spiffe", "dns", "tenant",
                                                                "role", "models", "not_after"}));
    MNEME_ASSIGN_OR_RETURN(CallerPtr caller, ReadCaller(node, fields));
    MNEME_ASSIGN_OR_RETURN(const std::string spiffe, TextOf(fields, "spiffe"));
    MNEME_ASSIGN_OR_RETURN(const std::string dns, TextOf(fields, "dns"));
    if (spiffe.empty() == dns.empty()) {
      return Bad(node.Mark(),
                 absl::StrCat("certificate \"", caller->id, "\" must have either spiffe or dns"));
    }
    if (!spiffe.empty() && !absl::StartsWith(spiffe, "spiffe://")) {
      return Bad(node.Mark(),
                 absl::StrCat("spiffe must begin with spiffe://, is \"", spiffe, "\""));
    }
    if (absl::StrContains(dns, '/') || absl::StrContains(dns, '*')) {
      return Bad(node.Mark(), absl::StrCat("dns must be one whole name, is \"", dns, "\""));
    }
    const std::string identity = spiffe.empty() ? absl::AsciiStrToLower(dns) : spiffe;
    if (!identities_.insert(identity).second) {
      return Bad(node.Mark(), absl::StrCat("\"", identity, "\" is given twice"));
    }
    keyring_->AddCertificate(identity, std::move(caller));
    return absl::OkStatus();
  }

  // What keys and certificates have in common.
  absl::StatusOr<CallerPtr> ReadCaller(const YAML::Node& node, const Fields& fields) {
    auto caller = std::make_shared<Caller>();
    MNEME_ASSIGN_OR_RETURN(caller->id, TextOf(fields, "id"));
    if (!IsValidId(caller->id)) {
      return Bad(node.Mark(), absl::StrCat("id must match ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$, is \"",
                                           caller->id, "\""));
    }
    if (!ids_.insert(caller->id).second) {
      return Bad(node.Mark(), absl::StrCat("id \"", caller->id, "\" is given twice"));
    }
    MNEME_ASSIGN_OR_RETURN(caller->tenant, TextOf(fields, "tenant"));
    if (!IsValidId(caller->tenant)) {
      return Bad(node.Mark(), absl::StrCat("tenant of \"", caller->id,
                                           "\" must match ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$, is \"",
                                           caller->tenant, "\""));
    }
    if (const auto limits = limits_.find(caller->tenant); limits != limits_.end()) {
      caller->limits = limits->second;
    }
    MNEME_ASSIGN_OR_RETURN(const std::string role, TextOf(fields, "role"));
    const auto known = Roles().find(role);
    if (known == Roles().end()) {
      return Bad(node.Mark(),
                 absl::StrCat("role of \"", caller->id,
                              "\" must be admin, user, reader or metrics, is \"", role, "\""));
    }
    caller->role = known->second;
    MNEME_RETURN_IF_ERROR(ReadModels(fields, *caller));
    MNEME_RETURN_IF_ERROR(ReadNotAfter(fields, *caller));
    return caller;
  }

  absl::Status ReadModels(const Fields& fields, Caller& caller) {
    const auto found = fields.find("models");
    if (found == fields.end()) return absl::OkStatus();
    const YAML::Node& models = found->second;
    // An empty list could mean every one, or none.
    if (!models.IsSequence() || models.size() == 0) {
      return Bad(models.Mark(), absl::StrCat("models of \"", caller.id,
                                             "\" must be a list such as [smollm2]; without the key "
                                             "it is every model"));
    }
    for (const YAML::Node& model : models) {
      if (!model.IsScalar() || !IsValidId(model.Scalar())) {
        return Bad(model.Mark(),
                   absl::StrCat("models of \"", caller.id, "\" must be names of --model"));
      }
      caller.models.insert(absl::StrCat("models/", model.Scalar()));
    }
    return absl::OkStatus();
  }

  absl::Status ReadNotAfter(const Fields& fields, Caller& caller) {
    MNEME_ASSIGN_OR_RETURN(const std::string text, TextOf(fields, "not_after"));
    if (!fields.contains("not_after")) return absl::OkStatus();
    std::string error;
    if (!absl::ParseTime(absl::RFC3339_full, text, &caller.not_after, &error) &&
        !absl::ParseTime("%Y-%m-%d", text, &caller.not_after, &error)) {
      return Bad(
          fields.at("not_after").Mark(),
          absl::StrCat("not_after of \"", caller.id,
                       "\" must be such as 2027-01-01 or 2027-01-01T00:00:00Z, is \"", text, "\""));
    }
    return absl::OkStatus();
  }

  const std::string& path_;
  const std::shared_ptr<Keyring> keyring_ = std::make_shared<Keyring>();
  std::set<std::string> ids_, digests_, identities_;
  std::map<std::string, TenantLimits> limits_;  // by tenant
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Keyring>> ReadKeysFile(const std::string& path) {
  return KeysFile(path).Read();
}

}  // namespace mneme::server
