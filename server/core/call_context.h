// What the core knows about the call it serves: caller, tenant, deadline, cancellation. No
// transport.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <stop_token>
#include <string>

#include "server/core/caller.h"

namespace mneme::server {

class CallContext {
 public:
  using Clock = std::chrono::steady_clock;

  std::shared_ptr<const Caller> caller;  // null: a server that knows nobody
  // Of the call's names: the caller's, or the one that an admin has named.
  std::string tenant = "default";
  bool MayUseModel(const std::string& model) const {
    return caller == nullptr || caller->MayUse(model);
  }
  std::string request_id;
  // Of a mutating call that says so: which request this is (request_memory.h).
  struct Request {
    std::string id;          // "" if it says nothing
    std::string payload;     // a hash of what it asks for
    std::string generation;  // the id of the turn that does it, if one does
  } request;
  Clock::time_point arrival = Clock::now();
  Clock::time_point deadline = Clock::time_point::max();
  // Until when other servers leave the session of the call to it (lease_table.h).
  std::atomic<Clock::time_point> lease_deadline{Clock::time_point::max()};

  // Of a turn that goes on although nobody reads it: whoever needs its session may cancel it.
  std::atomic<bool> unattended{false};

  // Why a call was told to stop.
  enum class Cancel {
    kNone,
    kClient /* disconnect or RPC cancellation */,
    kRequested /* CancelGeneration */,
    kDeadline,
    kShutdown,
    kSlowConsumer,
    kTakenOver /* another call reads its generation */,
    kLeaseLost /* another server may write the session */
  };

  // First cause wins. Runs the callbacks on stop_token() on the calling thread.
  void RequestCancel(Cancel cause);
  // Stopped by RequestCancel; no deadline that passes does that. A std::stop_callback may be
  // neither made nor destroyed under a lock that it takes.
  std::stop_token stop_token() const { return stop_.get_token(); }
  // Also reports kDeadline and kLeaseLost once their deadlines have passed.
  Cancel cancelled() const;
  // When it was; only after cancelled() is not kNone.
  Clock::time_point cancelled_at() const;

 private:
  std::atomic<Cancel> cancel_{Cancel::kNone};
  std::atomic<Clock::time_point> cancelled_at_{Clock::time_point::max()};
  std::stop_source stop_;
};

}  // namespace mneme::server
