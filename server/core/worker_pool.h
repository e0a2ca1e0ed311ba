// Threads for what blocks: turns, and the core's calls, since no gRPC reaction ever may.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "engine/core/mutex.h"

namespace mneme::server {

// Starts threads as they are needed and keeps them. A task may block for long: as long as
// `max_threads` is not reached, a new task never waits behind others. Thread-safe.
class WorkerPool {
 public:
  // At most `max_threads` run at once, and at most `max_waiting` tasks wait for one.
  WorkerPool(size_t max_threads, size_t max_waiting)
      : max_threads_(max_threads), max_waiting_(max_waiting) {}
  // Runs what was accepted, then joins.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // False if the pool is full: nothing was queued.
  [[nodiscard]] bool Submit(std::function<void()> task);

 private:
  void Work();

  const size_t max_threads_;
  const size_t max_waiting_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  size_t idle_ ABSL_GUARDED_BY(mutex_) = 0;  // threads that run no task, new ones included
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
