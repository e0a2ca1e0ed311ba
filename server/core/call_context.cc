#include "server/core/call_context.h"

#include <algorithm>
#include <utility>

namespace mneme::server {

void CallContext::RequestCancel(Cancel cause) {
  // The callback runs under the lock: that is what makes clearing it a barrier.
  MutexLock lock(&mutex_);
  if (cancel_.load() != Cancel::kNone) return;
  cancelled_at_ = Clock::now();  // first, for those who have seen the cause
  Cancel expected = Cancel::kNone;
  if (!cancel_.compare_exchange_strong(expected, cause)) return;
  if (auto callback = std::exchange(callback_, nullptr)) callback();
}

CallContext::Cancel CallContext::cancelled() const {
  const Cancel cause = cancel_.load();
  if (cause != Cancel::kNone) return cause;
  if (deadline != Clock::time_point::max() && Clock::now() >= deadline) return Cancel::kDeadline;
  return Cancel::kNone;
}

CallContext::Clock::time_point CallContext::cancelled_at() const {
  return std::min(cancelled_at_.load(), deadline);
}

void CallContext::OnCancel(std::function<void()> callback) {
  MutexLock lock(&mutex_);
  callback_ = nullptr;
  if (!callback) return;
  if (cancel_.load() != Cancel::kNone) {
    callback();
  } else {
    callback_ = std::move(callback);
  }
}

}  // namespace mneme::server
