#include "server/core/state_cache.h"

#include <algorithm>
#include <stop_token>
#include <utility>

#include "server/core/cancel_status.h"
#include "server/core/errors.h"

namespace mneme::server {

StateCache::StateCache(int64_t budget_bytes, int max_running, int max_waiting, Metrics& metrics)
    : budget_bytes_(budget_bytes),
      max_running_(max_running),
      max_waiting_(max_waiting),
      metrics_(metrics) {}

StateCache::Slot::Slot(Slot&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)), bytes_(other.bytes_) {}

StateCache::Slot& StateCache::Slot::operator=(Slot&& other) noexcept {
  if (this != &other) {
    Release();
    cache_ = std::exchange(other.cache_, nullptr);
    bytes_ = other.bytes_;
  }
  return *this;
}

void StateCache::Slot::Release() {
  if (auto* cache = std::exchange(cache_, nullptr)) cache->ReleaseBytes(bytes_);
}

void StateCache::ReleaseBytes(int64_t bytes) {
  MutexLock lock(&mutex_);
  pinned_bytes_ -= bytes;
  --running_;
  Publish();
  changed_.NotifyAll();
}

void StateCache::Erase(Residents::iterator it, std::vector<LoadedState>& freed) {
  resident_bytes_ -= it->bytes;
  by_key_.erase(it->identity.key);
  freed.push_back(std::move(it->loaded));
  residents_.erase(it);
}

bool StateCache::TryTake(int64_t bytes, const Identity* want, Grant& grant,
                         std::vector<LoadedState>& freed) {
  if (running_ >= max_running_) return false;
  if (want != nullptr) {
    if (auto found = by_key_.find(want->key); found != by_key_.end()) {
      const auto it = found->second;
      const bool matches = it->identity.uid == want->uid && it->identity.version == want->version;
      // Its bytes become the slot's.
      Erase(it, freed);
      if (matches && pinned_bytes_ + resident_bytes_ + bytes <= budget_bytes_) {
        grant.resident = std::move(freed.back());
        freed.pop_back();
      }
    }
  }
  if (pinned_bytes_ + bytes > budget_bytes_) return false;
  while (pinned_bytes_ + resident_bytes_ + bytes > budget_bytes_) {
    Erase(residents_.begin(), freed);
    metrics_.evictions.Increment();
  }
  pinned_bytes_ += bytes;
  ++running_;
  grant.slot = Slot(this, bytes);
  return true;
}

absl::StatusOr<StateCache::Grant> StateCache::Acquire(CallContext& context, int64_t bytes,
                                                      const Identity* want, int64_t queued_tokens) {
  Grant grant;
  std::vector<LoadedState> freed;  // destroyed after the lock is gone: unmapping is slow
  std::stop_callback on_cancel(context.stop_token(), [this] {
    MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  MutexLock lock(&mutex_);
  if (line_.empty() && TryTake(bytes, want, grant, freed)) {
    Publish();
    return grant;
  }
  if (static_cast<int>(line_.size()) >= max_waiting_) {
    metrics_.CountRejected(reason::kQueueFull);
    return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kQueueFull,
                           "every slot is in use and the queue is full; repeat the call later"),
                     absl::Seconds(1));
  }
  const uint64_t ticket = next_ticket_++;
  line_.push_back(ticket);
  queued_tokens_ += queued_tokens;
  Publish();
  CallContext::Cancel cause;
  bool taken = false;
  while ((cause = context.cancelled()) == CallContext::Cancel::kNone) {
    if (line_.front() == ticket && TryTake(bytes, want, grant, freed)) {
      taken = true;
      break;
    }
    if (context.deadline == CallContext::Clock::time_point::max()) {
      changed_.Wait(&mutex_);
    } else {
      changed_.WaitUntil(&mutex_, context.deadline);
    }
  }
  line_.erase(std::find(line_.begin(), line_.end(), ticket));
  queued_tokens_ -= queued_tokens;
  Publish();
  changed_.NotifyAll();  // the next in line may fit
  if (!taken) return CancelStatus(cause);
  return grant;
}

void StateCache::Keep(Slot slot, Identity identity, LoadedState loaded) {
  std::vector<LoadedState> freed;
  MutexLock lock(&mutex_);
  if (auto found = by_key_.find(identity.key); found != by_key_.end()) {
    Erase(found->second, freed);
  }
  // A state that grows was given room for all that its turn might have read.
  const int64_t bytes = std::min(
      slot.bytes_,
      static_cast<int64_t>(loaded.state.size_bytes() + loaded.logits.size() * sizeof(float)));
  slot.cache_ = nullptr;
  pinned_bytes_ -= slot.bytes_;
  --running_;
  resident_bytes_ += bytes;
  residents_.push_back({identity, bytes, std::move(loaded)});
  by_key_[identity.key] = std::prev(residents_.end());
  Publish();
  changed_.NotifyAll();
}

void StateCache::Drop(const std::string& key) {
  std::vector<LoadedState> freed;
  MutexLock lock(&mutex_);
  if (auto found = by_key_.find(key); found != by_key_.end()) {
    Erase(found->second, freed);
    Publish();
    changed_.NotifyAll();
  }
}

bool StateCache::Contains(const std::string& key, int64_t version) const {
  MutexLock lock(&mutex_);
  const auto found = by_key_.find(key);
  return found != by_key_.end() && found->second->identity.version == version;
}

int64_t StateCache::running() const {
  MutexLock lock(&mutex_);
  return running_;
}
int64_t StateCache::waiting() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(line_.size());
}
int64_t StateCache::used_bytes() const {
  MutexLock lock(&mutex_);
  return pinned_bytes_ + resident_bytes_;
}

void StateCache::Publish() {
  metrics_.requests_running.Set(running_);
  metrics_.requests_waiting.Set(static_cast<double>(line_.size()));
  metrics_.queued_tokens.Set(static_cast<double>(queued_tokens_));
  metrics_.state_bytes.Set(static_cast<double>(pinned_bytes_ + resident_bytes_));
  metrics_.state_slots_used_ratio.Set(static_cast<double>(pinned_bytes_) / budget_bytes_);
  metrics_.sessions_running.Set(running_);
  metrics_.sessions_resident.Set(static_cast<double>(residents_.size()));
}

}  // namespace mneme::server
