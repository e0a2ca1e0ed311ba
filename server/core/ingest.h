// IngestSession: a long text into a session, with commits on the way.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "server/core/parts.h"
#include "server/core/server_core.h"

namespace mneme::server {

absl::StatusOr<std::unique_ptr<Ingest>> StartIngest(Parts& parts, CallContext& context,
                                                    const v1::IngestRequest::Start& start);

}  // namespace mneme::server
