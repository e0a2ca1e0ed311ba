#include "memstore/postgres_target.h"

#include <libpq-fe.h>

#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "memstore/state_store.h"

namespace mneme::memstore {

absl::StatusOr<PgTarget> PgTarget::Parse(std::string_view uri, absl::Duration timeout) {
  const std::string text(uri), masked = MaskPostgresUri(uri);
  if (!IsPostgresUri(uri)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", masked, "\" is no URI of a PostgreSQL database: it must begin with postgresql://"));
  }
  char* error = nullptr;
  const std::unique_ptr<PQconninfoOption, void (*)(PQconninfoOption*)> options(
      PQconninfoParse(text.c_str(), &error), PQconninfoFree);
  const std::unique_ptr<char, void (*)(void*)> owned_error(error, PQfreemem);
  if (!options) {
    // libpq's text may quote the URI.
    const std::string why = masked == text && error != nullptr
                                ? std::string(absl::StripAsciiWhitespace(error))
                                : "libpq cannot read it";
    return absl::InvalidArgumentError(
        absl::StrCat("\"", masked, "\" is no URI of a PostgreSQL database: ", why,
                     "; expected postgresql://user@host:5432/database?sslmode=verify-full"));
  }
  PgTarget target;
  std::map<std::string, std::string>& parameters = target.parameters_;
  for (const PQconninfoOption* option = options.get(); option->keyword != nullptr; ++option) {
    if (option->val != nullptr) parameters[option->keyword] = option->val;
  }
  const std::pair<const char*, std::string> defaults[] = {
      {"application_name", "mneme"},
      {"connect_timeout", "5"},
      {"keepalives_idle", "10"},
      {"keepalives_interval", "5"},
      {"keepalives_count", "3"},
      {"tcp_user_timeout", absl::StrCat(absl::ToInt64Milliseconds(timeout))},
      {"target_session_attrs", "read-write"},
  };
  for (const auto& [keyword, value] : defaults) parameters.try_emplace(keyword, value);
  const auto find = [&](const char* keyword, const char* otherwise) {
    const auto it = parameters.find(keyword);
    return it == parameters.end() || it->second.empty() ? std::string(otherwise) : it->second;
  };
  target.place_ = absl::StrCat("host ", find("host", "local"), ", database ",
                               find("dbname", "of the user's name"));
  return target;
}

}  // namespace mneme::memstore
