// The memory for states: who may hold one, and which idle ones stay resident.
//
// Running calls hold slots; a slot is pinned. States of idle, committed sessions stay as long as
// nobody needs their bytes; the least recently used goes first and comes back from the store.
// Bytes of both together never exceed the budget. Thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/core/mutex.h"
#include "engine/state/snapshot.h"
#include "server/core/call_context.h"
#include "server/core/metrics.h"

namespace mneme::server {

// A state with everything that a turn needs to go on from it.
struct LoadedState {
  engine::State state;
  std::vector<float> logits;  // after the last token; empty at position 0
  std::shared_ptr<const engine::SnapshotManifest> manifest;  // as stored; null at position 0
};

class StateCache {
 public:
  StateCache(int64_t budget_bytes, int max_running, int max_waiting, Metrics& metrics);

  // The right to hold one state in memory.
  class Slot {
   public:
    Slot() = default;
    Slot(Slot&& other) noexcept;
    Slot& operator=(Slot&& other) noexcept;
    ~Slot() { Release(); }
    void Release();
    explicit operator bool() const { return cache_ != nullptr; }

   private:
    friend class StateCache;
    Slot(StateCache* cache, int64_t bytes) : cache_(cache), bytes_(bytes) {}
    StateCache* cache_ = nullptr;
    int64_t bytes_ = 0;
  };

  struct Identity {
    std::string key;  // of the session
    std::string uid;
    int64_t version = 0;
  };
  struct Grant {
    Slot slot;
    std::optional<LoadedState> resident;  // the session's own, if it was here; else restore it
  };

  // Waits in line for a slot of `bytes`. `want` may be null. Hands out the resident state of
  // exactly this (key, uid, version). UNAVAILABLE QUEUE_FULL if too many wait already; the
  // context's cancellation status if it is cancelled first.
  absl::StatusOr<Grant> Acquire(CallContext& context, int64_t bytes, const Identity* want,
                                int64_t queued_tokens);
  // Makes the state of a call that ended resident; takes over what it needs of the slot.
  void Keep(Slot slot, Identity identity, LoadedState loaded);
  void Drop(const std::string& key);
  bool Contains(const std::string& key, int64_t version) const;

  int64_t budget_bytes() const { return budget_bytes_; }
  int64_t running() const;
  int64_t waiting() const;
  // Bytes of slots and residents.
  int64_t used_bytes() const;

 private:
  struct Resident {
    Identity identity;
    int64_t bytes;
    LoadedState loaded;
  };
  using Residents = std::list<Resident>;  // least recently used first

  void ReleaseBytes(int64_t bytes);
  void Erase(Residents::iterator it, std::vector<LoadedState>& freed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool TryTake(int64_t bytes, const Identity* want, Grant& grant, std::vector<LoadedState>& freed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t budget_bytes_;
  const int max_running_;
  const int max_waiting_;
  Metrics& metrics_;

  mutable Mutex mutex_;
  CondVar changed_;
  Residents residents_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Residents::iterator> by_key_ ABSL_GUARDED_BY(mutex_);
  int64_t pinned_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t resident_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t queued_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<uint64_t> line_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
