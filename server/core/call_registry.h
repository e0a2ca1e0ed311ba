// The calls that are under way: turns, ingests, scores.
#pragma once

#include <deque>
#include <map>
#include <set>
#include <string>

#include "engine/core/mutex.h"
#include "server/core/call_context.h"

namespace mneme::server {

class CallRegistry {
 public:
  // Under way until destroyed.
  class Call {
   public:
    // `generation` ("tenants/t/generations/g") may be empty. `context` must outlive the call.
    Call(CallRegistry& registry, CallContext& context, std::string generation);
    ~Call() { End(); }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    void End();

   private:
    CallRegistry* registry_;
    CallContext& context_;
    const std::string generation_;
  };

  // False if this generation was never seen, or so long ago that it is forgotten. A finished one
  // is left alone.
  bool Cancel(const std::string& generation);
  void CancelAll(CallContext::Cancel cause);
  int64_t size() const;

 private:
  mutable Mutex mutex_;
  std::multiset<CallContext*> calls_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, CallContext*> generations_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> finished_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::string> finished_order_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
