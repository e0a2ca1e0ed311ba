// A fork-join pool for kernels: the calling thread works too.
//
// Only who computes an output depends on the number of threads, never how it is computed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/functional/function_ref.h"

namespace mneme::engine {

// Those that this process may use.
int AvailableProcessors();

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller: 1 starts no thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Calls fn(task, worker) for every task in [0, num_tasks), each exactly once, on up to
  // num_threads threads; worker is in [0, num_threads) and is never used by two tasks at the same
  // time. Returns when all are done. Tasks are handed out dynamically, in ascending order. Not
  // reentrant; one caller at a time. fn must not throw.
  void Run(int64_t num_tasks, absl::FunctionRef<void(int64_t task, int worker)> fn);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::engine
