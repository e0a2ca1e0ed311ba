#include "server/core/call_registry.h"

#include <utility>

namespace mneme::server {

CallRegistry::Call::Call(CallRegistry& registry, CallContext& context)
    : registry_(&registry), context_(context) {
  MutexLock lock(&registry_->mutex_);
  registry_->calls_.insert(&context_);
}

void CallRegistry::Call::End() {
  CallRegistry* registry = std::exchange(registry_, nullptr);
  if (registry == nullptr) return;
  MutexLock lock(&registry->mutex_);
  registry->calls_.erase(registry->calls_.find(&context_));
}

void CallRegistry::CancelAll(CallContext::Cancel cause) {
  MutexLock lock(&mutex_);
  for (CallContext* context : calls_) context->RequestCancel(cause);
}

int64_t CallRegistry::size() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(calls_.size());
}

}  // namespace mneme::server
