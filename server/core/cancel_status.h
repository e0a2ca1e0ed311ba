// What a stopped call's client and the metrics are told.
#pragma once

#include "absl/status/status.h"
#include "server/core/call_context.h"

namespace mneme::server {

// The status a stopped call ends with, when the caller did not ask for the stop.
absl::Status CancelStatus(CallContext::Cancel cause);
// For metrics: "client", "deadline", ...
const char* CancelName(CallContext::Cancel cause);

}  // namespace mneme::server
