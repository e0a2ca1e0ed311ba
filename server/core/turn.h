// A turn of a session, or a stateless completion, from a request to Final.
#pragma once

#include "absl/status/status.h"
#include "mneme/v1/generation.pb.h"
#include "server/core/generation_table.h"
#include "server/core/parts.h"

namespace mneme::server {

// On the generation's thread: appends Started, Progress, Delta... and, when the result is OK, Final
// to its log. Returns after the commit; what it held is free when Final is read. `revived`: the
// turn that another process left of the session, to be gone on with; `request` is its.
absl::Status RunTurn(Parts& parts, Generation& generation, const v1::GenerateRequest& request,
                     bool revived);

}  // namespace mneme::server
