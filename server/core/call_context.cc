#include "server/core/call_context.h"

#include <utility>

namespace mneme::server {

void CallContext::RequestCancel(Cancel cause) {
  // The callback runs under the lock: that is what makes clearing it a barrier.
  MutexLock lock(&mutex_);
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
