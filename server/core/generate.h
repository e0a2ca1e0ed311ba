// Generate: a turn of a session, or a stateless completion, from request to Final; and what is told
// of it to whoever asks again.
#pragma once

#include "mneme/v1/generation.pb.h"
#include "server/core/parts.h"
#include "server/core/server_core.h"

namespace mneme::server {

absl::Status Generate(Parts& parts, CallContext& context, const v1::GenerateRequest& request,
                      TurnSink& sink);
absl::Status ResumeGeneration(Parts& parts, CallContext& context,
                              const v1::ResumeGenerationRequest& request, TurnSink& sink);
absl::StatusOr<v1::GenerationInfo> GetGeneration(Parts& parts, const CallContext& context,
                                                 const v1::GetGenerationRequest& request);
absl::StatusOr<v1::CancelGenerationResponse> CancelGeneration(
    Parts& parts, const CallContext& context, const v1::CancelGenerationRequest& request);

}  // namespace mneme::server
