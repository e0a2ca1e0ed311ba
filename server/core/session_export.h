// ExportSession and ImportSession: sessions as files (session_file.h).
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "server/core/parts.h"
#include "server/core/server_core.h"

namespace mneme::server {

absl::Status ExportSession(Parts& parts, CallContext& context,
                           const v1::ExportSessionRequest& request, ExportSink& sink);

// session_import.cc
absl::StatusOr<std::unique_ptr<Import>> StartImport(Parts& parts, CallContext& context,
                                                    const v1::ImportSessionRequest::Start& start);

}  // namespace mneme::server
