// States that have read what other conversations begin with, in one device's memory.
//
// A call that begins at position 0 goes on from the longest of its tenant's states whose tokens its
// input begins with; it reads the rest, and the result is the same bits. There is a state only
// where a turn left one (turn.cc), so a prefix matches at those boundaries alone. Of one tenant
// nothing is ever seen by another, the time that a call takes included.
//
// The least recently used state goes first. One that is being copied from is not taken away.
// Thread-safe.
#pragma once

#include <prometheus/gauge.h>

#include <compare>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/core/mutex.h"
#include "engine/state/schema.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/core/call_context.h"

namespace mneme::server {

class PrefixCache {
 public:
  using Clock = CallContext::Clock;
  // Whose states, and of which model: nobody else finds them.
  struct Owner {
    std::string tenant;
    std::string model;
    auto operator<=>(const Owner&) const = default;
  };

  // 0 bytes: nothing is ever kept.
  PrefixCache(int64_t budget_bytes, prometheus::Gauge& bytes)
      : budget_bytes_(budget_bytes), bytes_(bytes) {}

  // The state that has read the most of `tokens` and nothing else; null if there is none.
  std::shared_ptr<const engine::State> Find(const Owner& owner,
                                            std::span<const engine::TokenId> tokens);
  // Keeps what `make` returns, a state of `bytes` that has read `tokens`, unless there is one, or
  // no room for it. `make` is called at most once, on this thread; std::bad_alloc of it is no
  // error.
  void Keep(const Owner& owner, std::span<const engine::TokenId> tokens, int64_t bytes,
            absl::FunctionRef<engine::State()> make);
  // Everything of the tenant.
  void Drop(const std::string& tenant);
  // What nobody has used since.
  void DropUnusedSince(Clock::time_point time);

  int64_t budget_bytes() const { return budget_bytes_; }
  // Tokens and states.
  int64_t used_bytes() const;

 private:
  using Tokens = std::vector<engine::TokenId>;
  struct Less {  // lexicographic, so that a prefix stands before what it begins
    using is_transparent = void;
    bool operator()(std::span<const engine::TokenId> a, std::span<const engine::TokenId> b) const;
  };
  struct Entry;
  using Entries = std::list<Entry>;
  using Index = std::map<Tokens, Entries::iterator, Less>;
  struct Entry {
    std::map<Owner, Index>::iterator owner;
    Index::iterator place;
    std::shared_ptr<const engine::State> state;
    int64_t bytes;
    Clock::time_point used;
  };
  using Freed = std::vector<std::shared_ptr<const engine::State>>;  // destroyed without the lock

  bool Touch(const Owner& owner, std::span<const engine::TokenId> tokens)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MarkUsed(Entries::iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Entries::iterator Erase(Entries::iterator entry, Freed& freed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MakeRoom(int64_t bytes, Freed& freed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // used_bytes_ changes by so much.
  void Count(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t budget_bytes_;
  prometheus::Gauge& bytes_;
  mutable Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);  // least recently used first
  std::map<Owner, Index> indexes_ ABSL_GUARDED_BY(mutex_);
  int64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // of entries, and of those being made
};

// Those of all devices.
class PrefixCaches {
 public:
  PrefixCache* Add(std::unique_ptr<PrefixCache> cache) {
    return caches_.emplace_back(std::move(cache)).get();
  }
  void Drop(const std::string& tenant) {
    for (const auto& cache : caches_) cache->Drop(tenant);
  }
  void DropUnusedSince(PrefixCache::Clock::time_point time) {
    for (const auto& cache : caches_) cache->DropUnusedSince(time);
  }
  // In sum.
  int64_t budget_bytes() const { return Sum(&PrefixCache::budget_bytes); }
  int64_t used_bytes() const { return Sum(&PrefixCache::used_bytes); }

 private:
  int64_t Sum(int64_t (PrefixCache::*of)() const) const {
    int64_t sum = 0;
    for (const auto& cache : caches_) sum += (*cache.*of)();
    return sum;
  }

  std::vector<std::unique_ptr<PrefixCache>> caches_;
};

}  // namespace mneme::server
