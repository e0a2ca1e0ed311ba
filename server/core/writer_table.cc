#include "server/core/writer_table.h"

#include <algorithm>
#include <stop_token>

namespace mneme::server {

// Locks are taken in the order table, call context, waiter; a cancellation callback takes only the
// waiter's, since CancelHolder runs it under the table's.
struct WriterTable::Waiter {
  CallContext* context = nullptr;
  Mutex mutex;
  CondVar changed;
  bool granted ABSL_GUARDED_BY(mutex) = false;
  bool cancelled ABSL_GUARDED_BY(mutex) = false;
};

WriterTable::Result WriterTable::Acquire(const std::string& key, CallContext& holder, bool wait) {
  std::shared_ptr<Waiter> waiter;
  {
    MutexLock lock(&mutex_);
    Entry& entry = entries_[key];
    if (entry.holder == nullptr) {
      entry.holder = &holder;
      return {Outcome::kHeld, Hold(this, key)};
    }
    // A turn that nobody reads makes way, if nobody else is first.
    const bool settle = entry.holder->unattended && entry.waiters.empty();
    if (settle) entry.holder->RequestCancel(CallContext::Cancel::kClient);
    if (!wait && !settle) return {Outcome::kBusy, Hold()};
    if (entry.waiters.size() >= kMaxWaiters) return {Outcome::kQueueFull, Hold()};
    waiter = std::make_shared<Waiter>();
    waiter->context = &holder;
    entry.waiters.push_back(waiter);
  }
  {
    std::stop_callback on_cancel(holder.stop_token(), [waiter] {
      MutexLock lock(&waiter->mutex);
      waiter->cancelled = true;
      waiter->changed.NotifyAll();
    });
    MutexLock lock(&waiter->mutex);
    while (!waiter->granted && !waiter->cancelled) {
      if (holder.deadline == CallContext::Clock::time_point::max()) {
        waiter->changed.Wait(&waiter->mutex);
      } else if (!waiter->changed.WaitUntil(&waiter->mutex, holder.deadline)) {
        break;
      }
    }
  }
  MutexLock lock(&mutex_);
  MutexLock waiter_lock(&waiter->mutex);
  if (waiter->granted) return {Outcome::kHeld, Hold(this, key)};
  auto& waiters = entries_[key].waiters;
  waiters.erase(std::find(waiters.begin(), waiters.end(), waiter));
  return {Outcome::kCancelled, Hold()};
}

void WriterTable::Release(const std::string& key) {
  MutexLock lock(&mutex_);
  auto it = entries_.find(key);
  if (it->second.waiters.empty()) {
    entries_.erase(it);
    return;
  }
  std::shared_ptr<Waiter> next = it->second.waiters.front();
  it->second.waiters.pop_front();
  it->second.holder = next->context;
  MutexLock waiter_lock(&next->mutex);
  next->granted = true;
  next->changed.NotifyAll();
}

bool WriterTable::IsHeld(const std::string& key) const {
  MutexLock lock(&mutex_);
  return entries_.contains(key);
}

void WriterTable::HurryUnattended(const std::string& key) {
  MutexLock lock(&mutex_);
  const auto it = entries_.find(key);
  if (it != entries_.end() && it->second.holder->unattended && !it->second.waiters.empty()) {
    it->second.holder->RequestCancel(CallContext::Cancel::kClient);
  }
}

void WriterTable::CancelHolder(const std::string& key) {
  MutexLock lock(&mutex_);
  auto it = entries_.find(key);
  if (it != entries_.end()) it->second.holder->RequestCancel(CallContext::Cancel::kRequested);
}

}  // namespace mneme::server
