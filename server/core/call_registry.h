// The calls that are under way: turns, ingests, scores.
#pragma once

#include <cstdint>
#include <set>

#include "engine/core/mutex.h"
#include "server/core/call_context.h"

namespace mneme::server {

class CallRegistry {
 public:
  // Under way until destroyed.
  class Call {
   public:
    // `context` must outlive the call.
    Call(CallRegistry& registry, CallContext& context);
    ~Call() { End(); }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    void End();

   private:
    CallRegistry* registry_;
    CallContext& context_;
  };

  void CancelAll(CallContext::Cancel cause);
  int64_t size() const;

 private:
  mutable Mutex mutex_;
  std::multiset<CallContext*> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
