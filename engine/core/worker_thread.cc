#include "engine/core/worker_thread.h"

#include <utility>

namespace mneme::engine {

WorkerThread::WorkerThread() : thread_([this] { Run(); }) {}

WorkerThread::~WorkerThread() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

uint64_t WorkerThread::Submit(std::function<void()> task) {
  MutexLock lock(&mutex_);
  tasks_.push_back(std::move(task));
  changed_.NotifyAll();
  return ++submitted_;
}

void WorkerThread::Wait(uint64_t number) {
  MutexLock lock(&mutex_);
  while (done_ < number) changed_.Wait(&mutex_);
}

void WorkerThread::Run() {
  while (true) {
    std::function<void()> task;
    {
      MutexLock lock(&mutex_);
      while (tasks_.empty() && !stop_) changed_.Wait(&mutex_);
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
    MutexLock lock(&mutex_);
    ++done_;
    changed_.NotifyAll();
  }
}

}  // namespace mneme::engine
