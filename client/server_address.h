// Where a server is, as people write it, and as gRPC wants it. Internal to the library.
//
//   HOST[:PORT], http://HOST[:PORT][/]   -> HOST:PORT; a port left out is Mneme's own, 7447
//   https://HOST[:PORT][/]               -> the same, over TLS
//   dns:..., ipv4:..., ipv6:..., unix:..., unix-abstract:..., xds:...   gRPC targets: as they are
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace mneme::client {

struct Target {
  std::string address;      // as gRPC takes it
  std::optional<bool> tls;  // as http:// or https:// says; none if neither is written
};

// kInvalidArgument, saying what was expected.
absl::StatusOr<Target> TargetOf(std::string_view server);

// HOST and PORT of a target that is an address, or dns:///HOST:PORT; none of others, such as unix
// sockets and lists.
struct HostAndPort {
  std::string host;  // without brackets
  std::string port;
};
std::optional<HostAndPort> HostAndPortOf(std::string_view target);

// What is sent there does not leave this machine: a unix socket, 127.0.0.0/8, ::1 or localhost.
bool IsThisMachine(std::string_view target);

}  // namespace mneme::client
