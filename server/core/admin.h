// GetServerInfo and GetLoads: a server's view of itself.
#pragma once

#include "mneme/v1/admin.pb.h"
#include "server/core/parts.h"

namespace mneme::server {

v1::ServerInfo GetServerInfo(Parts& parts);
v1::Loads GetLoads(Parts& parts);

}  // namespace mneme::server
