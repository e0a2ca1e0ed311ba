#include "client/names.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace mneme::client {
namespace {

constexpr char kIdRule[] =
    "1 to 63 of a-z, 0-9 and '-', beginning with a letter and not ending with '-'";

bool IsLower(char c) { return c >= 'a' && c <= 'z'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

std::vector<std::string> Parts(std::string_view name) {
  return absl::StrSplit(absl::string_view(name.data(), name.size()), '/');
}

absl::Status BadName(std::string_view what, std::string_view value, std::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat("bad ", std::string(what), " name '",
                                                 std::string(value), "': expected ",
                                                 std::string(expected)));
}

bool IsSession(const std::vector<std::string>& p) {
  return p.size() == 4 && p[0] == "tenants" && IsId(p[1]) && p[2] == "sessions" && IsId(p[3]);
}

}  // namespace

bool IsId(std::string_view id) {
  return !id.empty() && id.size() <= 63 && IsLower(id.front()) && id.back() != '-' &&
         std::all_of(id.begin(), id.end(),
                     [](char c) { return IsLower(c) || IsDigit(c) || c == '-'; });
}

absl::StatusOr<std::string> TenantName(std::string_view tenant) {
  if (!IsId(tenant)) return BadName("tenant", tenant, kIdRule);
  return absl::StrCat("tenants/", std::string(tenant));
}

absl::StatusOr<std::string> SessionName(std::string_view tenant, std::string_view session) {
  if (session.find('/') == std::string_view::npos) {
    if (!IsId(session)) return BadName("session", session, kIdRule);
    auto parent = TenantName(tenant);
    if (!parent.ok()) return parent.status();
    return absl::StrCat(*parent, "/sessions/", std::string(session));
  }
  if (!IsSession(Parts(session))) {
    return BadName("session", session, "SESSION or tenants/TENANT/sessions/SESSION");
  }
  return std::string(session);
}

absl::StatusOr<std::string> SnapshotName(std::string_view tenant, std::string_view snapshot) {
  constexpr char kForms[] =
      "SESSION@SNAPSHOT, SESSION/snapshots/SNAPSHOT or "
      "tenants/TENANT/sessions/SESSION/snapshots/SNAPSHOT";
  std::string_view session, id;
  if (size_t at = snapshot.find('@'); at != std::string_view::npos) {
    session = snapshot.substr(0, at);
    id = snapshot.substr(at + 1);
  } else {
    constexpr std::string_view kInfix = "/snapshots/";
    size_t infix = snapshot.find(kInfix);
    if (infix == std::string_view::npos) return BadName("snapshot", snapshot, kForms);
    session = snapshot.substr(0, infix);
    id = snapshot.substr(infix + kInfix.size());
  }
  auto name = SessionName(tenant, session);
  if (!name.ok() || !IsId(id)) return BadName("snapshot", snapshot, kForms);
  return absl::StrCat(*name, "/snapshots/", std::string(id));
}

absl::StatusOr<std::string> ModelName(std::string_view model) {
  std::string_view id = model;
  constexpr std::string_view kPrefix = "models/";
  if (id.substr(0, kPrefix.size()) == kPrefix) id.remove_prefix(kPrefix.size());
  bool good = !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return IsLower(c) || IsDigit(c) || (c >= 'A' && c <= 'Z') || c == '-' || c == '.' || c == '_';
  });
  if (!good) return BadName("model", model, "MODEL or models/MODEL");
  return absl::StrCat("models/", std::string(id));
}

std::string_view IdOf(std::string_view name) {
  size_t slash = name.rfind('/');
  return slash == std::string_view::npos ? name : name.substr(slash + 1);
}

std::string_view SessionOf(std::string_view name) {
  return name.substr(0, name.find("/snapshots/"));
}

}  // namespace mneme::client
