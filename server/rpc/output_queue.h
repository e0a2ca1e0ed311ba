// The way of a stream's messages to gRPC, which takes one at a time and says in OnWriteDone when it
// wants the next.
//
// Nothing piles up here: the producer, a worker thread that may block, waits with a message until
// gRPC has taken the one before. So the output of a turn gathers in one place, where it is merged
// and bounded (generation_log.h).
#pragma once

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <stop_token>
#include <utility>

#include "engine/core/mutex.h"
#include "server/core/call_context.h"

namespace mneme::server {

template <typename Message>
class OutputQueue {
 public:
  using Clock = CallContext::Clock;

  enum class Result {
    kOk,
    kClosed,  // the client is gone, or the call is over for another reason in the context
    kSlow,    // a write has not been taken for slow_client_timeout
  };

  // `start_write` hands a message, which stays where it is until OnWriteDone, to gRPC. `context`
  // and the reactor behind `start_write` must outlive the queue.
  OutputQueue(Clock::duration slow_client_timeout, const CallContext& context,
              std::function<void(const Message*)> start_write)
      : slow_client_timeout_(slow_client_timeout),
        context_(context),
        start_write_(std::move(start_write)),
        on_cancel_(context.stop_token(), [this] {
          MutexLock lock(&mutex_);
          changed_.NotifyAll();
        }) {}

  // Blocks while another message is on its way.
  Result Push(Message message) {
    {
      MutexLock lock(&mutex_);
      while (true) {
        if (closed_) return Result::kClosed;
        if (Slow()) return Result::kSlow;
        if (items_.empty()) break;
        if (context_.cancelled() != CallContext::Cancel::kNone) return Result::kClosed;
        WaitUntil(context_.deadline);
      }
      items_.push_back(std::move(message));
    }
    StartNext();
    return Result::kOk;
  }

  // Never blocks: replaces a message that waits, if there is one. For reports of which only the
  // newest counts.
  void PushLatest(Message message) {
    {
      MutexLock lock(&mutex_);
      if (closed_) return;
      const size_t in_flight = in_flight_ ? 1 : 0;
      if (items_.size() > in_flight) {
        items_.back() = std::move(message);
      } else {
        items_.push_back(std::move(message));
      }
    }
    StartNext();
  }

  // Waits until everything is sent. Afterwards, unless kSlow, nothing is in flight.
  Result Flush() {
    MutexLock lock(&mutex_);
    while (true) {
      if (starting_ == 0 && !in_flight_ && (items_.empty() || closed_)) {
        return closed_ ? Result::kClosed : Result::kOk;
      }
      if (closed_) {
        changed_.Wait(&mutex_);  // gRPC gives the message back that it has
      } else if (Slow()) {
        return Result::kSlow;
      } else {
        WaitUntil(Clock::time_point::max());
      }
    }
  }

  // Drops what is not in flight and starts no more; afterwards the stream may be finished.
  void Abandon() {
    MutexLock lock(&mutex_);
    closed_ = true;
    while (starting_ > 0) changed_.Wait(&mutex_);
    items_.resize(in_flight_ ? 1 : 0);
    changed_.NotifyAll();
  }

  // From the reactions OnWriteDone and OnCancel; neither blocks.
  void OnWriteDone(bool ok) {
    {
      MutexLock lock(&mutex_);
      items_.pop_front();
      in_flight_ = false;
      last_progress_ = Clock::now();
      if (!ok) closed_ = true;
      changed_.NotifyAll();
    }
    StartNext();
  }
  void Close() {
    MutexLock lock(&mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }

 private:
  Clock::time_point SlowAt() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return in_flight_ ? last_progress_ + slow_client_timeout_ : Clock::time_point::max();
  }
  bool Slow() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return Clock::now() >= SlowAt(); }
  // Something has changed, or the client is slow, or it is `time`.
  void WaitUntil(Clock::time_point time) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    changed_.WaitUntil(&mutex_, std::min(time, SlowAt()));
  }

  // start_write_ runs without the lock, since gRPC may answer on the same thread.
  void StartNext() {
    const Message* next = nullptr;
    {
      MutexLock lock(&mutex_);
      if (in_flight_ || closed_ || items_.empty()) return;
      in_flight_ = true;
      ++starting_;
      last_progress_ = Clock::now();
      next = &items_.front();
    }
    start_write_(next);
    MutexLock lock(&mutex_);
    --starting_;
    changed_.NotifyAll();
  }

  const Clock::duration slow_client_timeout_;
  const CallContext& context_;
  const std::function<void(const Message*)> start_write_;

  Mutex mutex_;
  CondVar changed_;
  std::deque<Message> items_ ABSL_GUARDED_BY(mutex_);  // the first is in flight if in_flight_
  bool in_flight_ ABSL_GUARDED_BY(mutex_) = false;
  int starting_ ABSL_GUARDED_BY(mutex_) = 0;  // threads inside start_write_
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  Clock::time_point last_progress_ ABSL_GUARDED_BY(mutex_) = Clock::now();

  const std::stop_callback<std::function<void()>> on_cancel_;  // last: it uses the others
};

}  // namespace mneme::server
