// One writer per session: who changes which session now, and who waits for it.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/core/mutex.h"
#include "server/core/call_context.h"

namespace mneme::server {

class WriterTable {
 public:
  static constexpr int kMaxWaiters = 8;

  // Holds the session until destroyed.
  class Hold {
   public:
    Hold() = default;
    Hold(WriterTable* table, std::string key) : table_(table), key_(std::move(key)) {}
    Hold(Hold&& other) noexcept
        : table_(std::exchange(other.table_, nullptr)), key_(std::move(other.key_)) {}
    Hold& operator=(Hold&& other) noexcept {
      Release();
      table_ = std::exchange(other.table_, nullptr);
      key_ = std::move(other.key_);
      return *this;
    }
    ~Hold() { Release(); }
    void Release() {
      if (auto* table = std::exchange(table_, nullptr)) table->Release(key_);
    }

   private:
    WriterTable* table_ = nullptr;
    std::string key_;
  };

  enum class Outcome { kHeld, kBusy, kQueueFull, kCancelled };
  struct Result {
    Outcome outcome;
    Hold hold;
  };

  // `holder` must outlive the hold; a forced delete cancels it. With `wait`, waits first come,
  // first served, until granted or `holder` is cancelled (kCancelled: holder.cancelled() says why).
  // A present holder that is unattended is cancelled and waited for in either case.
  Result Acquire(const std::string& key, CallContext& holder, bool wait);
  bool IsHeld(const std::string& key) const;
  // Cancels the present holder if it is unattended and others wait.
  void HurryUnattended(const std::string& key);
  // Cancels the present holder, if there is one. Idempotent.
  void CancelHolder(const std::string& key);

 private:
  struct Waiter;
  struct Entry {
    CallContext* holder = nullptr;
    std::deque<std::shared_ptr<Waiter>> waiters;
  };
  void Release(const std::string& key);

  mutable Mutex mutex_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
