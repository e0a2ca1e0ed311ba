// What a test and the threads of a server in its process share.
//
// A call over the network orders nothing: a test that has the answer has not yet seen, in the sense
// of the memory model, what the server's thread wrote before sending it. These two do the ordering.
#pragma once

#include <functional>
#include <utility>

#include "engine/core/mutex.h"

namespace mneme::test {

// A function that a test may replace while the server's threads call it.
template <typename Signature>
class Replaceable;
template <typename Result, typename... Arguments>
class Replaceable<Result(Arguments...)> {
 public:
  template <typename Function>
  Replaceable(Function function) : function_(std::move(function)) {}
  template <typename Function>
  void operator=(Function function) {
    MutexLock lock(&mutex_);
    function_ = std::move(function);
  }
  std::function<Result(Arguments...)> Get() const {
    MutexLock lock(&mutex_);
    return function_;
  }
  Result operator()(Arguments... arguments) const {
    return Get()(std::forward<Arguments>(arguments)...);
  }

 private:
  mutable Mutex mutex_;
  std::function<Result(Arguments...)> function_ ABSL_GUARDED_BY(mutex_);
};

// A value that both sides read and change.
template <typename T>
class Guarded {
 public:
  Guarded() = default;
  explicit Guarded(T value) : value_(std::move(value)) {}
  ~Guarded() { MutexLock lock(&mutex_); }  // after whoever changed it last
  T Get() const {
    MutexLock lock(&mutex_);
    return value_;
  }
  void Set(T value) {
    MutexLock lock(&mutex_);
    value_ = std::move(value);
  }
  // Returns change(value), called under the lock.
  template <typename Change>
  auto Update(Change change) {
    MutexLock lock(&mutex_);
    return change(value_);
  }

 private:
  mutable Mutex mutex_;
  T value_ ABSL_GUARDED_BY(mutex_){};
};

}  // namespace mneme::test
