// Generate: a turn of a session, or a stateless completion, from request to Final.
#pragma once

#include "mneme/v1/generation.pb.h"
#include "server/core/parts.h"
#include "server/core/server_core.h"

namespace mneme::server {

absl::Status Generate(Parts& parts, CallContext& context, const v1::GenerateRequest& request,
                      TurnSink& sink);

}  // namespace mneme::server
