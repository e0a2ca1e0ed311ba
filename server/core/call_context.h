// What the core knows about the call it serves: tenant, deadline, cancellation. No transport.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "engine/core/mutex.h"

namespace mneme::server {

class CallContext {
 public:
  using Clock = std::chrono::steady_clock;

  std::string tenant = "default";
  std::string request_id;
  Clock::time_point arrival = Clock::now();
  Clock::time_point deadline = Clock::time_point::max();

  // Why a call was told to stop.
  enum class Cancel {
    kNone,
    kClient /* disconnect or RPC cancellation */,
    kRequested /* CancelGeneration */,
    kDeadline,
    kShutdown,
    kSlowConsumer
  };

  // First cause wins. Runs the callback, if one is set, on the calling thread.
  void RequestCancel(Cancel cause);
  // Also reports kDeadline once the deadline has passed.
  Cancel cancelled() const;
  // When it was; only after cancelled() is not kNone.
  Clock::time_point cancelled_at() const;
  // Called once on cancellation, or at once if already cancelled; nullptr clears it. After clearing
  // returns, the old callback does not run any more.
  void OnCancel(std::function<void()> callback);

 private:
  std::atomic<Cancel> cancel_{Cancel::kNone};
  std::atomic<Clock::time_point> cancelled_at_{Clock::time_point::max()};
  Mutex mutex_;
  std::function<void()> callback_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
