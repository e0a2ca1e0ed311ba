#include "server/core/state_cache.h"

#include <algorithm>
#include <stop_token>
#include <utility>

#include "server/core/cancel_status.h"
#include "server/core/errors.h"

namespace mneme::server {

StateCache::StateCache(int64_t budget_bytes, int max_running, int max_waiting,
                       std::span<const std::string> models, TierMetrics tier, Metrics& metrics,
                       TenantUse& tenants)
    : budget_bytes_(budget_bytes),
      max_running_(max_running),
      max_waiting_(max_waiting),
      tier_(tier),
      metrics_(metrics),
      tenants_(tenants),
      requests_running_(metrics.requests_running),
      requests_waiting_(metrics.requests_waiting),
      queued_tokens_shown_(metrics.queued_tokens) {
  for (const std::string& model : models) lines_.try_emplace(model);
}

StateCache::Slot::Slot(Slot&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)), line_(other.line_), bytes_(other.bytes_) {}

StateCache::Slot& StateCache::Slot::operator=(Slot&& other) noexcept {
  if (this != &other) {
    Release();
    cache_ = std::exchange(other.cache_, nullptr);
    line_ = other.line_;
    bytes_ = other.bytes_;
  }
  return *this;
}

void StateCache::Slot::Release() {
  if (auto* cache = std::exchange(cache_, nullptr)) {
    MutexLock lock(&cache->mutex_);
    cache->Return(*this);
    cache->Publish();
    cache->CallNext();
  }
}

void StateCache::Return(const Slot& slot) {
  pinned_bytes_ -= slot.bytes_;
  slot.line_->bytes -= slot.bytes_;
  --running_;
}

void StateCache::Erase(Residents::iterator it, Freed& freed) {
  resident_bytes_ -= it->bytes;
  it->line->bytes -= it->bytes;
  by_key_.erase(it->identity.key);
  freed.push_back(std::move(it->loaded));
  it->line->residents.erase(it);
}

void StateCache::EvictOne(Freed& freed) {
  Line* largest = nullptr;
  for (auto& [model, line] : lines_) {
    if (!line.residents.empty() && (largest == nullptr || line.bytes > largest->bytes)) {
      largest = &line;
    }
  }
  Erase(largest->residents.begin(), freed);
  tier_.evictions.Increment();
}

bool StateCache::TryTake(Line& line, int64_t bytes, const Identity* want, Grant& grant,
                         Freed& freed) {
  if (running_ >= max_running_) return false;
  if (want != nullptr) {
    if (auto found = by_key_.find(want->key); found != by_key_.end()) {
      const auto it = found->second;
      const bool matches = it->identity == *want;
      // Its bytes become the slot's.
      Erase(it, freed);
      if (matches && pinned_bytes_ + resident_bytes_ + bytes <= budget_bytes_) {
        grant.resident = std::move(freed.back());
        freed.pop_back();
      }
    }
  }
  if (pinned_bytes_ + bytes > budget_bytes_) return false;
  line.bytes += bytes;
  while (pinned_bytes_ + resident_bytes_ + bytes > budget_bytes_) EvictOne(freed);
  pinned_bytes_ += bytes;
  ++running_;
  grant.slot = Slot(this, &line, bytes);
  return true;
}

bool StateCache::IsNext(const Line& line, uint64_t ticket) const {
  return turns_.front() == &line && line.next == ticket;
}

void StateCache::Choose(Line& line) {
  const std::deque<uint64_t>* best = nullptr;
  double least = 0;
  for (const auto& [tenant, tickets] : line.waiting) {
    const double served = tenants_.Served(tenant);
    if (best != nullptr && (served > least || (served == least && tickets[0] > best->front()))) {
      continue;
    }
    best = &tickets;
    least = served;
  }
  line.next = best->front();
}

void StateCache::CallNext() {
  for (Line* line : turns_) Choose(*line);
  changed_.NotifyAll();
}

void StateCache::JoinLine(Line& line, const std::string& tenant, uint64_t ticket) {
  line.waiting[tenant].push_back(ticket);
  if (line.num_waiting++ > 0) return;
  turns_.push_back(&line);
  line.next = ticket;
}

void StateCache::LeaveLine(Line& line, const std::string& tenant, uint64_t ticket) {
  const auto tickets = line.waiting.find(tenant);
  tickets->second.erase(std::find(tickets->second.begin(), tickets->second.end(), ticket));
  if (tickets->second.empty()) line.waiting.erase(tickets);
  --line.num_waiting;
  if (line.next != ticket) return;
  turns_.erase(std::find(turns_.begin(), turns_.end(), &line));
  if (line.num_waiting > 0) turns_.push_back(&line);
}

absl::StatusOr<StateCache::Grant> StateCache::Acquire(CallContext& context,
                                                      const std::string& model, int64_t bytes,
                                                      const Identity* want, int64_t queued_tokens) {
  Grant grant;
  Freed freed;
  std::stop_callback on_cancel(context.stop_token(), [this] {
    MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  MutexLock lock(&mutex_);
  Line& line = lines_.at(model);
  const std::string tenant = TenantUse::WaitsFor(context);
  if (turns_.empty() && TryTake(line, bytes, want, grant, freed)) {
    tenants_.Serve(tenant, queued_tokens);
    Publish();
    return grant;
  }
  if (line.num_waiting >= max_waiting_) {
    metrics_.CountRejected(reason::kQueueFull);
    return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kQueueFull,
                           "every slot is in use and the queue is full; repeat the call later"),
                     absl::Seconds(1));
  }
  const uint64_t ticket = next_ticket_++;
  JoinLine(line, tenant, ticket);
  queued_tokens_ += queued_tokens;
  Publish();
  CallContext::Cancel cause;
  bool taken = false;
  while ((cause = context.cancelled()) == CallContext::Cancel::kNone) {
    if (IsNext(line, ticket) && TryTake(line, bytes, want, grant, freed)) {
      taken = true;
      break;
    }
    if (context.deadline == CallContext::Clock::time_point::max()) {
      changed_.Wait(&mutex_);
    } else {
      changed_.WaitUntil(&mutex_, context.deadline);
    }
  }
  LeaveLine(line, tenant, ticket);
  if (taken) tenants_.Serve(tenant, queued_tokens);
  queued_tokens_ -= queued_tokens;
  Publish();
  CallNext();  // who may fit
  if (!taken) return CancelStatus(cause);
  return grant;
}

void StateCache::Keep(Slot slot, Identity identity, LoadedState loaded) {
  Freed freed;
  MutexLock lock(&mutex_);
  if (auto found = by_key_.find(identity.key); found != by_key_.end()) {
    Erase(found->second, freed);
  }
  // A state that grows was given room for all that its turn might have read.
  const int64_t bytes = std::min(slot.bytes_, static_cast<int64_t>(loaded.state.size_bytes()));
  slot.cache_ = nullptr;
  Return(slot);
  Line& line = *slot.line_;
  resident_bytes_ += bytes;
  line.bytes += bytes;
  line.residents.push_back({&line, identity, bytes, std::move(loaded)});
  by_key_[identity.key] = std::prev(line.residents.end());
  Publish();
  CallNext();
}

void StateCache::Drop(const std::string& key) {
  Freed freed;
  MutexLock lock(&mutex_);
  if (auto found = by_key_.find(key); found != by_key_.end()) {
    Erase(found->second, freed);
    Publish();
    CallNext();
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
  return Waiting();
}
int64_t StateCache::used_bytes() const {
  MutexLock lock(&mutex_);
  return pinned_bytes_ + resident_bytes_;
}

int64_t StateCache::Waiting() const {
  size_t waiting = 0;
  for (const Line* line : turns_) waiting += line->num_waiting;
  return static_cast<int64_t>(waiting);
}

void StateCache::Publish() {
  requests_running_.Set(running_);
  requests_waiting_.Set(static_cast<double>(Waiting()));
  queued_tokens_shown_.Set(static_cast<double>(queued_tokens_));
  tier_.state_bytes.Set(static_cast<double>(pinned_bytes_ + resident_bytes_));
  tier_.slots_used_ratio.Set(static_cast<double>(pinned_bytes_) / budget_bytes_);
  tier_.sessions_running.Set(running_);
  tier_.sessions_resident.Set(static_cast<double>(by_key_.size()));
}

void StateCache::Part::Set(double value) {
  if (value > value_) gauge_.Increment(value - value_);
  if (value < value_) gauge_.Decrement(value_ - value);
  value_ = value;
}

StateCache* StateCaches::Add(std::unique_ptr<StateCache> cache) {
  return caches_.emplace_back(std::move(cache)).get();
}

void StateCaches::Keep(StateCache::Slot slot, StateCache::Identity identity, LoadedState loaded) {
  StateCache* const own = slot.cache();
  for (const auto& cache : caches_) {
    if (cache.get() != own) cache->Drop(identity.key);
  }
  own->Keep(std::move(slot), std::move(identity), std::move(loaded));
}

void StateCaches::Drop(const std::string& key) {
  for (const auto& cache : caches_) cache->Drop(key);
}

bool StateCaches::Contains(const std::string& key, int64_t version) const {
  return std::ranges::any_of(caches_,
                             [&](const auto& cache) { return cache->Contains(key, version); });
}

int64_t StateCaches::Sum(int64_t (StateCache::*of)() const) const {
  int64_t sum = 0;
  for (const auto& cache : caches_) sum += (*cache.*of)();
  return sum;
}

}  // namespace mneme::server
