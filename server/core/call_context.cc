#include "server/core/call_context.h"

#include <algorithm>

namespace mneme::server {

void CallContext::RequestCancel(Cancel cause) {
  // The time first, for those who have seen the cause; the earliest of several.
  auto unset = Clock::time_point::max();
  cancelled_at_.compare_exchange_strong(unset, Clock::now());
  Cancel none = Cancel::kNone;
  if (cancel_.compare_exchange_strong(none, cause)) stop_.request_stop();
}

CallContext::Cancel CallContext::cancelled() const {
  const Cancel cause = cancel_.load();
  if (cause != Cancel::kNone) return cause;
  if (deadline != Clock::time_point::max() && Clock::now() >= deadline) return Cancel::kDeadline;
  if (lease_deadline.load() != Clock::time_point::max() && Clock::now() >= lease_deadline.load()) {
    return Cancel::kLeaseLost;
  }
  return Cancel::kNone;
}

CallContext::Clock::time_point CallContext::cancelled_at() const {
  return std::min({cancelled_at_.load(), deadline, lease_deadline.load()});
}

}  // namespace mneme::server
