// The way of a client's frames from gRPC, one at a time with one read ahead: not taking a frame is
// the backpressure.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <functional>
#include <stop_token>

#include "engine/core/mutex.h"
#include "server/core/call_context.h"

namespace mneme::server {

class InputSlot {
 public:
  using Clock = CallContext::Clock;

  enum class Result {
    kFrame,
    kEnd,      // the client sends no more, or is gone
    kNothing,  // it is `until`, or the call is over for a reason in the context
  };

  // `context` must outlive the slot.
  explicit InputSlot(const CallContext& context)
      : context_(context), on_cancel_(context.stop_token(), [this] {
          MutexLock lock(&mutex_);
          changed_.NotifyAll();
        }) {}

  // What StartRead is given: at the beginning, and after each kFrame.
  grpc::ByteBuffer* buffer() { return &incoming_; }
  // From the reaction OnReadDone.
  void OnReadDone(bool ok) {
    MutexLock lock(&mutex_);
    read_ = ok ? Read::kDone : Read::kEnd;
    changed_.NotifyAll();
  }

  // Waits while a read is in flight, at most until `until` or the call's deadline.
  Result Next(Clock::time_point until, grpc::ByteBuffer* frame) {
    MutexLock lock(&mutex_);
    if (read_ == Read::kInFlight && context_.cancelled() == CallContext::Cancel::kNone) {
      changed_.WaitUntil(&mutex_, std::min(context_.deadline, until));
    }
    if (read_ == Read::kInFlight) return Result::kNothing;
    if (read_ == Read::kEnd) return Result::kEnd;
    frame->Swap(&incoming_);
    read_ = Read::kInFlight;
    return Result::kFrame;
  }

 private:
  const CallContext& context_;
  grpc::ByteBuffer incoming_;  // gRPC's while a read is in flight
  Mutex mutex_;
  CondVar changed_;
  enum class Read { kInFlight, kDone, kEnd };
  Read read_ ABSL_GUARDED_BY(mutex_) = Read::kInFlight;

  const std::stop_callback<std::function<void()>> on_cancel_;  // last: it uses the others
};

}  // namespace mneme::server
