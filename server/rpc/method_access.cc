#include "server/rpc/method_access.h"

#include <google/protobuf/reflection.h>

#include <algorithm>
#include <utility>

#include "server/core/generation_table.h"
#include "server/core/resource_id.h"
#include "server/core/session_names.h"

namespace mneme::server {
namespace {

const std::vector<MethodAccess>& Table() {
  constexpr auto kTenant = NameField::Kind::kTenant;
  constexpr auto kResumeToken = NameField::Kind::kResumeToken;
  static const auto& table = *new std::vector<MethodAccess>{
      {"CreateSession", Role::kUser, {{"parent", kTenant}}},
      {"GetSession", Role::kReader, {{"name"}}},
      {"ListSessions", Role::kReader, {{"parent", kTenant}}},
      {"UpdateSession", Role::kUser, {{"session.name"}}},
      {"DeleteSession", Role::kUser, {{"name"}}},
      {"BatchDeleteSessions", Role::kUser, {{"parent", kTenant}, {"names"}}},
      {"UndeleteSession", Role::kUser, {{"name"}}},
      {"ForkSession", Role::kUser, {{"name"}}},
      {"RewindSession", Role::kUser, {{"name"}, {"snapshot"}}},
      {"CreateSnapshot", Role::kUser, {{"parent"}}},
      {"GetSnapshot", Role::kReader, {{"name"}}},
      {"DeleteSnapshot", Role::kUser, {{"name"}}},
      {"ListSnapshots", Role::kReader, {{"parent"}}},
      {"ReadTranscript", Role::kReader, {{"name"}}},
      {"IngestSession", Role::kUser, {{"start.session"}}},
      {"ExportSession", Role::kReader, {{"name"}}},
      {"ImportSession", Role::kUser, {{"start.parent", kTenant}}},
      {"Generate", Role::kUser, {{"session"}}},
      {"Complete", Role::kUser, {{"session"}}},
      {"ResumeGeneration", Role::kUser, {{"generation"}, {"resume_token", kResumeToken}}},
      {"GetGeneration", Role::kReader, {{"name"}}},
      {"CancelGeneration", Role::kUser, {{"name"}}},
      {"Tokenize", Role::kReader, {}},
      {"Detokenize", Role::kReader, {}},
      {"Score", Role::kReader, {{"session"}}},
      {"ListModels", Role::kReader, {}},
      {"GetModel", Role::kReader, {}},
      {"GetServerInfo", Role::kAdmin, {}},
      {"GetLoads", Role::kAdmin, {}},
      {"DrainServer", Role::kAdmin, {}},
  };
  return table;
}

// The texts of a field, one unless it is repeated; "" if it is not set.
std::vector<std::string> TextsAt(const google::protobuf::Message& message, std::string_view path) {
  const size_t dot = path.find('.');
  const auto* field = message.GetDescriptor()->FindFieldByName(std::string(path.substr(0, dot)));
  const auto& reflection = *message.GetReflection();
  if (dot != path.npos) {
    return TextsAt(reflection.GetMessage(message, field), path.substr(dot + 1));
  }
  if (!field->is_repeated()) return {reflection.GetString(message, field)};
  const auto texts = reflection.GetRepeatedFieldRef<std::string>(message, field);
  return {texts.begin(), texts.end()};
}

// The tenant that a name says; "" if it says none, or has no right form.
std::string TenantOf(std::string_view name, NameField::Kind kind) {
  if (kind == NameField::Kind::kResumeToken) {
    return TenantOf(GenerationOfToken(name), NameField::Kind::kResource);
  }
  constexpr std::string_view kPrefix = "tenants/";
  std::string_view tenant;
  if (name.starts_with(kPrefix)) {
    tenant = name.substr(kPrefix.size());
    tenant = tenant.substr(0, tenant.find('/'));
  } else if (kind == NameField::Kind::kTenant) {
    tenant = name;
  }
  return IsValidId(tenant) ? std::string(tenant) : "";
}

}  // namespace

const MethodAccess* FindMethodAccess(std::string_view method) {
  const auto found = std::find_if(Table().begin(), Table().end(), [&](const MethodAccess& access) {
    return access.method == method;
  });
  return found == Table().end() ? nullptr : &*found;
}

absl::Status CheckTenants(const MethodAccess& access, const Caller& caller,
                          const google::protobuf::Message& request, CallContext& context) {
  bool first = true;
  for (const NameField& name : access.names) {
    for (const std::string& text : TextsAt(request, name.path)) {
      if (text.empty()) continue;
      const bool is_first = std::exchange(first, false);
      const std::string tenant = TenantOf(text, name.kind);
      if (tenant.empty() || tenant == context.tenant) continue;
      // What further names say must be of the tenant that the first is of.
      if (caller.role != Role::kAdmin || !is_first) return OtherTenant(context.tenant);
      context.tenant = tenant;
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme::server
