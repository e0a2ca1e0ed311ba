// The gRPC service config the client uses, and the retry times it states.
//
// Only methods that change nothing are retried by gRPC itself. Those that write are retried by
// Call() of client/channel.h, which sees to it that they happen once and says if their outcome is
// unknown.
#pragma once

#include <string>

#include "absl/time/time.h"

namespace mneme::client {

inline constexpr int kMaxAttempts = 4;
inline constexpr absl::Duration kInitialBackoff = absl::Milliseconds(100);
inline constexpr absl::Duration kMaxBackoff = absl::Seconds(2);

// `health_check`: also watch grpc.health.v1 and use only addresses that are SERVING. It needs the
// round_robin policy, since pick_first ignores health in gRPC 1.51.
std::string ServiceConfigJson(bool health_check);

// Time before attempt `attempt` (2, 3, ...), without jitter: 0.1 s doubled, at most 2 s.
absl::Duration Backoff(int attempt);

}  // namespace mneme::client
