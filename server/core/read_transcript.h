// ReadTranscript: what a session has read and answered, as text and ids, page by page.
#pragma once

#include "absl/status/statusor.h"
#include "mneme/v1/sessions.pb.h"
#include "server/core/parts.h"

namespace mneme::server {

absl::StatusOr<v1::ReadTranscriptResponse> ReadTranscript(Parts& parts, CallContext& context,
                                                          const v1::ReadTranscriptRequest& request);

}  // namespace mneme::server
