#include "server/rpc/unary_call.h"

#include "server/core/errors.h"

namespace mneme::server {

absl::Status NoWorkerLeft() {
  return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kQueueFull,
                         "the server has as many calls as it can hold; try again later"),
                   absl::Seconds(1));
}

}  // namespace mneme::server
