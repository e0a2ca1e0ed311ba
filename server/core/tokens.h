// Tokenize, Detokenize and Score: text and tokens without a turn.
#pragma once

#include "absl/status/statusor.h"
#include "mneme/v1/generation.pb.h"
#include "server/core/parts.h"

namespace mneme::server {

absl::StatusOr<v1::TokenizeResponse> Tokenize(Parts& parts, CallContext& context,
                                              const v1::TokenizeRequest& request);
absl::StatusOr<v1::DetokenizeResponse> Detokenize(Parts& parts, CallContext& context,
                                                  const v1::DetokenizeRequest& request);
absl::StatusOr<v1::ScoreResponse> Score(Parts& parts, CallContext& context,
                                        const v1::ScoreRequest& request);

}  // namespace mneme::server
