// Where a server is, as people write it, and as gRPC wants it. Internal to the library.
//
//   HOST[:PORT], http://HOST[:PORT][/]   -> HOST:PORT; a port left out is Mneme's own, 7447
//   dns:..., ipv4:..., ipv6:..., unix:..., unix-abstract:..., xds:...   gRPC targets: as they are
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace mneme::client {

// kInvalidArgument, saying what was expected; https:// too, since the server speaks no TLS.
absl::StatusOr<std::string> TargetOf(std::string_view server);

}  // namespace mneme::client
