// Connection URIs as texts, for whoever reads or prints configuration. Needs no libpq.
#include <algorithm>
#include <string>
#include <string_view>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "memstore/state_store.h"

namespace mneme::memstore {
namespace {

constexpr std::string_view kMask = "****";

// Of "password=..." and the like in the query; their names are matched loosely, so that a misspelt
// capital does not show one.
bool IsSecret(std::string_view name) {
  return absl::StrContains(absl::AsciiStrToLower(std::string(name)), "password");
}

}  // namespace

bool IsPostgresUri(std::string_view text) {
  return text.starts_with("postgresql://") || text.starts_with("postgres://");
}

// By hand and generously: also a URI that libpq refuses is printed.
std::string MaskPostgresUri(std::string_view uri) {
  if (!IsPostgresUri(uri)) return std::string(uri);
  const size_t begin = uri.find("://") + 3;
  std::string out(uri.substr(0, begin));
  uri.remove_prefix(begin);
  size_t query = std::min(uri.find('?'), uri.size());
  size_t at = uri.substr(0, query).rfind('@');
  const size_t colon = uri.substr(0, query).find(':');
  if (at == uri.npos && colon != uri.npos) {
    // A port, or a password with a ? in it, which ought to be written as %3F.
    const size_t end = std::min(uri.find_first_of("/,?", colon), uri.size());
    const std::string_view port = uri.substr(colon + 1, end - colon - 1);
    if (!std::all_of(port.begin(), port.end(), absl::ascii_isdigit)) at = uri.rfind('@');
  }
  if (at != uri.npos && colon < at) {
    absl::StrAppend(&out, std::string(uri.substr(0, colon + 1)), std::string(kMask));
    uri.remove_prefix(at);
    query = std::min(uri.find('?'), uri.size());
  }
  out += uri.substr(0, query);
  for (size_t i = query; i < uri.size();) {
    const size_t end = std::min(uri.find('&', i + 1), uri.size());
    const std::string_view pair = uri.substr(i, end - i);  // with its ? or &
    const size_t equals = pair.find('=');
    if (equals != pair.npos && IsSecret(pair.substr(0, equals))) {
      absl::StrAppend(&out, std::string(pair.substr(0, equals + 1)), std::string(kMask));
    } else {
      out += pair;
    }
    i = end;
  }
  return out;
}

}  // namespace mneme::memstore
