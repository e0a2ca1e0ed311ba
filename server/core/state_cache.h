// The states in one device's memory: who may hold one, and which idle ones stay resident.
//
// Running calls hold slots; a slot is pinned. States of idle, committed sessions stay as long as
// nobody needs their bytes, and come back from the store. Bytes of both together never exceed the
// budget.
//
// Fair between models: each has a line of its own for slots, and the lines take turns, so that a
// crowd before one model delays the next call of another by no more than one of the crowd. Fair
// between tenants: in a line the least served one goes first (tenant_use.h), and of its calls the
// one that came first. Bytes
// are taken from the model that holds the most: a model that keeps to its even share of the budget
// never loses an idle state to another, and within a model the least recently used goes first.
// Thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/core/mutex.h"
#include "engine/state/snapshot.h"
#include "server/core/call_context.h"
#include "server/core/metrics.h"
#include "server/core/tenant_use.h"

namespace mneme::server {

// A state with everything that a turn needs to go on from it.
struct LoadedState {
  engine::State state;
  std::shared_ptr<const engine::SnapshotManifest> manifest;  // as stored; null at position 0
};

class StateCache {
  struct Line;

 public:
  // Of `models`; no other may be asked for. At most max_waiting calls wait in the line of each.
  StateCache(int64_t budget_bytes, int max_running, int max_waiting,
             std::span<const std::string> models, TierMetrics tier, Metrics& metrics,
             TenantUse& tenants);

  // The right to hold one state in memory.
  class Slot {
   public:
    Slot() = default;
    Slot(Slot&& other) noexcept;
    Slot& operator=(Slot&& other) noexcept;
    ~Slot() { Release(); }
    void Release();
    explicit operator bool() const { return cache_ != nullptr; }
    StateCache* cache() const { return cache_; }

   private:
    friend class StateCache;
    Slot(StateCache* cache, Line* line, int64_t bytes)
        : cache_(cache), line_(line), bytes_(bytes) {}
    StateCache* cache_ = nullptr;
    Line* line_ = nullptr;
    int64_t bytes_ = 0;
  };

  struct Identity {
    std::string key;  // of the session
    std::string uid;
    int64_t version = 0;
    int64_t epoch = 0;  // of the lease under which it was committed

    bool operator==(const Identity&) const = default;
  };
  struct Grant {
    Slot slot;
    std::optional<LoadedState> resident;  // the session's own, if it was here; else restore it
  };

  // Waits in the model's line for a slot of `bytes`. `want` may be null. Hands out the resident
  // state of exactly this (key, uid, version, epoch). UNAVAILABLE QUEUE_FULL if too many wait
  // already; the context's cancellation status if it is cancelled first.
  absl::StatusOr<Grant> Acquire(CallContext& context, const std::string& model, int64_t bytes,
                                const Identity* want, int64_t queued_tokens);
  // Makes the state of a call that ended resident; takes over what it needs of the slot.
  void Keep(Slot slot, Identity identity, LoadedState loaded);
  void Drop(const std::string& key);
  bool Contains(const std::string& key, int64_t version) const;

  // What Acquire is asked for must fit in.
  int64_t budget_bytes() const { return budget_bytes_; }
  TierMetrics& tier() { return tier_; }
  int64_t running() const;
  int64_t waiting() const;
  // Bytes of slots and residents.
  int64_t used_bytes() const;

 private:
  struct Resident {
    Line* line;
    Identity identity;
    int64_t bytes;
    LoadedState loaded;
  };
  using Residents = std::list<Resident>;
  struct Line {  // of one model
    int64_t bytes = 0;
    Residents residents;                                  // least recently used first
    std::map<std::string, std::deque<uint64_t>> waiting;  // by tenant
    size_t num_waiting = 0;
    // Whose turn it is. Chosen whenever a slot may have come free, and kept until the next time:
    // whoever waits must not find that it is somebody else's after all.
    uint64_t next = 0;
  };
  // What this cache adds to a gauge that those of other devices share.
  class Part {
   public:
    explicit Part(prometheus::Gauge& gauge) : gauge_(gauge) {}
    void Set(double value);

   private:
    prometheus::Gauge& gauge_;
    double value_ = 0;
  };
  using Freed = std::vector<LoadedState>;  // destroyed without the lock: unmapping is slow

  void Return(const Slot& slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Erase(Residents::iterator it, Freed& freed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EvictOne(Freed& freed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool TryTake(Line& line, int64_t bytes, const Identity* want, Grant& grant, Freed& freed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsNext(const Line& line, uint64_t ticket) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void JoinLine(Line& line, const std::string& tenant, uint64_t ticket)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LeaveLine(Line& line, const std::string& tenant, uint64_t ticket)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Choose(Line& line) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A slot may have come free.
  void CallNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t Waiting() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t budget_bytes_;
  const int max_running_;
  const size_t max_waiting_;  // in one line
  TierMetrics tier_;
  Metrics& metrics_;
  TenantUse& tenants_;

  mutable Mutex mutex_;
  CondVar changed_;
  std::map<std::string, Line> lines_ ABSL_GUARDED_BY(mutex_);  // by model; none comes or goes
  std::deque<Line*> turns_ ABSL_GUARDED_BY(mutex_);  // lines in which somebody waits; next first
  std::map<std::string, Residents::iterator> by_key_ ABSL_GUARDED_BY(mutex_);
  int64_t pinned_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t resident_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t queued_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  Part requests_running_ ABSL_GUARDED_BY(mutex_);
  Part requests_waiting_ ABSL_GUARDED_BY(mutex_);
  Part queued_tokens_shown_ ABSL_GUARDED_BY(mutex_);
};

// The caches of all devices, and what is asked of all of them together.
class StateCaches {
 public:
  StateCache* Add(std::unique_ptr<StateCache> cache);

  // StateCache::Keep of the slot's; what another device has of the session is of no use any more.
  void Keep(StateCache::Slot slot, StateCache::Identity identity, LoadedState loaded);
  void Drop(const std::string& key);
  bool Contains(const std::string& key, int64_t version) const;
  // As those of StateCache, in sum.
  int64_t running() const { return Sum(&StateCache::running); }
  int64_t waiting() const { return Sum(&StateCache::waiting); }
  int64_t used_bytes() const { return Sum(&StateCache::used_bytes); }
  int64_t budget_bytes() const { return Sum(&StateCache::budget_bytes); }

 private:
  int64_t Sum(int64_t (StateCache::*of)() const) const;

  std::vector<std::unique_ptr<StateCache>> caches_;
};

}  // namespace mneme::server
