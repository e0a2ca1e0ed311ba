// Sets a call's cancellation callback for the life of a scope.
#pragma once

#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "server/core/call_context.h"

namespace mneme::server {

// Neither construction nor destruction may happen under a lock that the callback takes.
class ScopedCancel {
 public:
  ScopedCancel(CallContext& context, std::function<void()> callback) : context_(context) {
    context_.OnCancel(std::move(callback));
  }
  ~ScopedCancel() { context_.OnCancel(nullptr); }
  ScopedCancel(const ScopedCancel&) = delete;
  ScopedCancel& operator=(const ScopedCancel&) = delete;

 private:
  CallContext& context_;
};

// The status a stopped call ends with, when the caller did not ask for the stop.
absl::Status CancelStatus(CallContext::Cancel cause);
// For metrics: "client", "deadline", ...
const char* CancelName(CallContext::Cancel cause);

}  // namespace mneme::server
