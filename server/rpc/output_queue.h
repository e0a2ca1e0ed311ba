// What a stream still has to send: bounded, in order, one write in flight.
//
// The producer is a worker thread that may block; the consumer is gRPC, which takes one message at
// a time and says in OnWriteDone when it wants the next. Memory per stream is at most the limits
// plus one message, however slow the reader is.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <utility>

#include "engine/core/mutex.h"
#include "server/core/call_context.h"

namespace mneme::server {

template <typename Message>
class OutputQueue {
 public:
  using Clock = std::chrono::steady_clock;

  struct Limits {
    size_t max_unsent_bytes = 256 << 10;
    int64_t max_unsent_tokens = 1024;
    Clock::duration slow_client_timeout = std::chrono::seconds(30);
  };
  enum class Result {
    kOk,
    kClosed,  // the client is gone, or the call is over for another reason in the context
    kSlow,    // a write has not been taken for slow_client_timeout
  };

  // `start_write` hands a message, which stays where it is until OnWriteDone, to gRPC. `context`
  // and the reactor behind `start_write` must outlive the queue's use.
  OutputQueue(Limits limits, const CallContext& context,
              std::function<void(const Message*)> start_write)
      : limits_(limits), context_(context), start_write_(std::move(start_write)) {}

  // Blocks while the queue is full. A turn that is ending by request or shutdown is let through:
  // what it still sends is little and must arrive.
  Result Push(Message message, int64_t tokens) {
    const auto bytes = static_cast<size_t>(message.ByteSizeLong());
    {
      MutexLock lock(&mutex_);
      while (true) {
        if (closed_) return Result::kClosed;
        if (Slow()) return Result::kSlow;
        if (Fits(bytes, tokens)) break;
        const CallContext::Cancel cause = context_.cancelled();
        if (cause == CallContext::Cancel::kRequested || cause == CallContext::Cancel::kShutdown) {
          break;
        }
        if (cause != CallContext::Cancel::kNone) return Result::kClosed;
        WaitABit();
      }
      Append(std::move(message), bytes, tokens);
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
        items_.back().message = std::move(message);
      } else {
        Append(std::move(message), 0, 0);
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
      if (!closed_ && Slow()) return Result::kSlow;
      WaitABit();
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
      unsent_bytes_ -= items_.front().bytes;
      unsent_tokens_ -= items_.front().tokens;
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
  struct Item {
    Message message;
    size_t bytes = 0;
    int64_t tokens = 0;
  };

  bool Fits(size_t bytes, int64_t tokens) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return items_.empty() || (unsent_bytes_ + bytes <= limits_.max_unsent_bytes &&
                              unsent_tokens_ + tokens <= limits_.max_unsent_tokens);
  }
  bool Slow() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return in_flight_ && Clock::now() - last_progress_ >= limits_.slow_client_timeout;
  }
  void Append(Message message, size_t bytes, int64_t tokens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    unsent_bytes_ += bytes;
    unsent_tokens_ += tokens;
    items_.push_back({std::move(message), bytes, tokens});
  }
  // The context has no second callback for us: look at it every 20 ms while blocked.
  void WaitABit() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    changed_.WaitUntil(&mutex_, Clock::now() + std::chrono::milliseconds(20));
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
      next = &items_.front().message;
    }
    start_write_(next);
    MutexLock lock(&mutex_);
    --starting_;
    changed_.NotifyAll();
  }

  const Limits limits_;
  const CallContext& context_;
  const std::function<void(const Message*)> start_write_;

  Mutex mutex_;
  CondVar changed_;
  std::deque<Item> items_ ABSL_GUARDED_BY(mutex_);  // the first is in flight if in_flight_
  size_t unsent_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t unsent_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  bool in_flight_ ABSL_GUARDED_BY(mutex_) = false;
  int starting_ ABSL_GUARDED_BY(mutex_) = 0;  // threads inside start_write_
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  Clock::time_point last_progress_ ABSL_GUARDED_BY(mutex_) = Clock::now();
};

}  // namespace mneme::server
