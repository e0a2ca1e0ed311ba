#include "client/server_address.h"

#include <algorithm>
#include <array>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace mneme::client {
namespace {

constexpr char kDefaultPort[] = "7447";
constexpr std::array kGrpcSchemes = {
    "dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:", "xds:"};

absl::Status Bad(absl::string_view server, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("bad server '", server, "': ", why, "; expected HOST:PORT"));
}

}  // namespace

absl::StatusOr<Target> TargetOf(std::string_view server) {
  const absl::string_view written(server.data(), server.size());
  if (std::any_of(kGrpcSchemes.begin(), kGrpcSchemes.end(),
                  [&](const char* scheme) { return absl::StartsWith(written, scheme); })) {
    return Target{std::string(written), std::nullopt};
  }
  absl::string_view rest = written;
  std::optional<bool> tls;
  if (absl::ConsumePrefix(&rest, "https://")) {
    tls = true;
  } else if (absl::ConsumePrefix(&rest, "http://")) {
    tls = false;
  }
  if (absl::StrContains(rest, "://")) {
    return Bad(written, "only http:// or https:// may stand before the host");
  }
  rest = absl::StripSuffix(rest, "/");
  if (absl::StrContains(rest, '/')) return Bad(written, "a path has no meaning here");

  // [::1]:7447 has its colons in brackets; ::1 alone is a host without a port.
  const size_t bracket = rest.rfind(']');
  const size_t colon = rest.find(':', bracket == absl::string_view::npos ? 0 : bracket);
  const bool bare_ipv6 =
      bracket == absl::string_view::npos && std::count(rest.begin(), rest.end(), ':') > 1;
  if (bare_ipv6) return Target{absl::StrCat("[", rest, "]:", kDefaultPort), tls};
  const absl::string_view host = rest.substr(0, colon);
  if (host.empty()) return Bad(written, "it names no host");
  if (colon == absl::string_view::npos) return Target{absl::StrCat(host, ":", kDefaultPort), tls};
  int port = 0;
  if (!absl::SimpleAtoi(rest.substr(colon + 1), &port) || port < 1 || port > 65535) {
    return Bad(written, "its port is no number from 1 to 65535");
  }
  return Target{absl::StrCat(host, ":", port), tls};
}

std::optional<HostAndPort> HostAndPortOf(std::string_view target) {
  absl::string_view rest(target.data(), target.size());
  absl::ConsumePrefix(&rest, "dns:///") || absl::ConsumePrefix(&rest, "dns:");
  const size_t colon = rest.rfind(':');
  if (colon == absl::string_view::npos || absl::StrContains(rest, '/')) return std::nullopt;
  absl::string_view host = rest.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) {
    if (!absl::ConsumeSuffix(&host, "]")) return std::nullopt;
  } else if (absl::StrContains(host, ':') || absl::StrContains(host, ',')) {
    return std::nullopt;
  }
  return HostAndPort{std::string(host), std::string(rest.substr(colon + 1))};
}

bool IsThisMachine(std::string_view target) {
  if (target.starts_with("unix:") || target.starts_with("unix-abstract:")) return true;
  const auto peer = HostAndPortOf(target);
  return peer &&
         (peer->host == "localhost" || peer->host == "::1" || absl::StartsWith(peer->host, "127."));
}

}  // namespace mneme::client
