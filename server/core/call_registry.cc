#include "server/core/call_registry.h"

#include <utility>

namespace mneme::server {
namespace {
constexpr size_t kRememberFinished = 4096;
}  // namespace

CallRegistry::Call::Call(CallRegistry& registry, CallContext& context, std::string generation)
    : registry_(&registry), context_(context), generation_(std::move(generation)) {
  MutexLock lock(&registry_->mutex_);
  registry_->calls_.insert(&context_);
  if (!generation_.empty()) registry_->generations_[generation_] = &context_;
}

void CallRegistry::Call::End() {
  CallRegistry* registry = std::exchange(registry_, nullptr);
  if (registry == nullptr) return;
  MutexLock lock(&registry->mutex_);
  registry->calls_.erase(registry->calls_.find(&context_));
  if (generation_.empty()) return;
  registry->generations_.erase(generation_);
  registry->finished_.insert(generation_);
  registry->finished_order_.push_back(generation_);
  if (registry->finished_order_.size() > kRememberFinished) {
    registry->finished_.erase(registry->finished_order_.front());
    registry->finished_order_.pop_front();
  }
}

bool CallRegistry::Cancel(const std::string& generation) {
  MutexLock lock(&mutex_);
  if (auto found = generations_.find(generation); found != generations_.end()) {
    found->second->RequestCancel(CallContext::Cancel::kRequested);
    return true;
  }
  return finished_.contains(generation);
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
