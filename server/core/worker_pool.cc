#include "server/core/worker_pool.h"

#include <system_error>
#include <utility>

namespace mneme::server {

WorkerPool::~WorkerPool() {
  std::vector<std::thread> threads;
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    threads.swap(threads_);
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads) thread.join();
}

bool WorkerPool::Submit(std::function<void()> task) {
  MutexLock lock(&mutex_);
  if (stopping_) return false;
  // Each waiting task has one of the idle threads on its way, as far as there are any.
  if (tasks_.size() >= idle_ && threads_.size() < max_threads_) {
    try {
      threads_.emplace_back([this] { Work(); });
      ++idle_;
    } catch (const std::system_error&) {
      // The machine is out of threads; those we have take the task, if there are any.
      if (threads_.empty()) return false;
    }
  } else if (tasks_.size() >= idle_ + max_waiting_) {
    return false;
  }
  tasks_.push_back(std::move(task));
  changed_.NotifyOne();
  return true;
}

void WorkerPool::Work() {
  while (true) {
    std::function<void()> task;
    {
      MutexLock lock(&mutex_);
      while (tasks_.empty() && !stopping_) changed_.Wait(&mutex_);
      --idle_;
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
    MutexLock lock(&mutex_);
    ++idle_;
  }
}

}  // namespace mneme::server
