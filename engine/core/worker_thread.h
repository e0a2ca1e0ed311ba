// A thread that runs tasks for those who have something else to do meanwhile.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>

#include "engine/core/mutex.h"

namespace mneme::engine {

class WorkerThread {
 public:
  WorkerThread();
  // Runs what was submitted first.
  ~WorkerThread();
  WorkerThread(const WorkerThread&) = delete;
  WorkerThread& operator=(const WorkerThread&) = delete;

  // Tasks run one at a time, in this order. `task` must not throw. Returns the task's number.
  uint64_t Submit(std::function<void()> task);
  // Until the task of that number is done.
  void Wait(uint64_t number);

 private:
  void Run();

  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  uint64_t submitted_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace mneme::engine
