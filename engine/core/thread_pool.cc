#include "engine/core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "engine/core/cgroup.h"
#include "engine/core/mutex.h"

namespace mneme::engine {
namespace {

// A decode step forks about 200 times with gaps of a few microseconds. Spinning over such a gap
// keeps a fork near a microsecond; a futex wake costs ten to fifty. Longer gaps belong to somebody
// else on the machine.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kPausesPerClockRead = 32;

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A job's gate in one word, so that joining is one compare-and-swap: the number of the job, whether
// workers may still join, and how many are inside. The caller closes the gate when no task is left
// and waits only for workers inside: one that was asleep or descheduled costs it nothing.
constexpr uint64_t kActiveMask = (uint64_t{1} << 31) - 1;
constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr int kJobShift = 32;

}  // namespace

class ThreadPool::Impl {
 public:
  explicit Impl(int num_threads) : num_threads_(std::max(1, num_threads)) {
    for (int worker = 1; worker < num_threads_; ++worker) {
      threads_.emplace_back([this, worker] { WorkerLoop(worker); });
    }
  }

  ~Impl() {
    {
      MutexLock lock(&mutex_);
      stop_.store(true, std::memory_order_seq_cst);
    }
    wake_.NotifyAll();
    for (std::thread& thread : threads_) thread.join();
  }

  int num_threads() const { return num_threads_; }

  void Run(int64_t num_tasks, absl::FunctionRef<void(int64_t, int)> fn) {
    if (num_tasks <= 0) return;
    if (num_threads_ == 1 || num_tasks == 1) {
      for (int64_t task = 0; task < num_tasks; ++task) fn(task, 0);
      return;
    }
    fn_ = &fn;
    num_tasks_ = num_tasks;
    next_.store(0, std::memory_order_relaxed);
    const uint64_t job = (gate_.load(std::memory_order_relaxed) >> kJobShift) + 1;
    // Sequentially consistent against a worker that counts itself asleep and then looks at the
    // gate: one of the two sees the other.
    gate_.store((job << kJobShift) | kOpen, std::memory_order_seq_cst);
    if (const int asleep = asleep_.load(std::memory_order_seq_cst); asleep > 0) {
      { MutexLock lock(&mutex_); }
      const int64_t wanted = std::min<int64_t>(asleep, num_tasks - 1);
      for (int64_t i = 0; i < wanted; ++i) wake_.NotifyOne();
    }
    Work(fn, 0);
    gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spins = 0; (gate_.load(std::memory_order_acquire) & kActiveMask) != 0; ++spins) {
      // The last worker may have lost its processor: give it ours.
      if (spins < 2000) {
        Pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  void Work(absl::FunctionRef<void(int64_t, int)> fn, int worker) {
    const int64_t num_tasks = num_tasks_;
    for (;;) {
      const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= num_tasks) return;
      fn(task, worker);
    }
  }

  // Waits for a job later than `seen`, first spinning, then asleep. False: the pool is going away.
  bool AwaitJob(uint64_t seen) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < kPausesPerClockRead; ++i) {
        if ((gate_.load(std::memory_order_acquire) >> kJobShift) != seen) return true;
        Pause();
      }
      if (stop_.load(std::memory_order_relaxed)) return false;
    } while (std::chrono::steady_clock::now() < deadline);

    MutexLock lock(&mutex_);
    asleep_.fetch_add(1, std::memory_order_seq_cst);
    while ((gate_.load(std::memory_order_seq_cst) >> kJobShift) == seen &&
           !stop_.load(std::memory_order_seq_cst)) {
      wake_.Wait(&mutex_);
    }
    asleep_.fetch_sub(1, std::memory_order_seq_cst);
    return !stop_.load(std::memory_order_seq_cst);
  }

  void WorkerLoop(int worker) {
    uint64_t seen = 0;
    while (AwaitJob(seen)) {
      uint64_t gate = gate_.load(std::memory_order_acquire);
      seen = gate >> kJobShift;
      while ((gate & kOpen) != 0 && (gate >> kJobShift) == seen) {
        if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel,
                                        std::memory_order_acquire)) {
          Work(*fn_, worker);
          gate_.fetch_sub(1, std::memory_order_acq_rel);
          break;
        }
      }
    }
  }

  const int num_threads_;

  // Written by the caller while the gate is closed and nobody is inside; read inside.
  const absl::FunctionRef<void(int64_t, int)>* fn_ = nullptr;
  int64_t num_tasks_ = 0;

  // On lines of their own: workers hammer next_ while others poll gate_.
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};

  Mutex mutex_;
  CondVar wake_;
  std::vector<std::thread> threads_;
};

int AvailableProcessors() {
  cpu_set_t set;
  const int allowed = sched_getaffinity(0, sizeof(set), &set) == 0
                          ? CPU_COUNT(&set)
                          : static_cast<int>(std::thread::hardware_concurrency());
  return ReadCgroupLimits().Threads(allowed);
}

ThreadPool::ThreadPool(int num_threads) : impl_(std::make_unique<Impl>(num_threads)) {}
ThreadPool::~ThreadPool() = default;

int ThreadPool::num_threads() const { return impl_->num_threads(); }

void ThreadPool::Run(int64_t num_tasks, absl::FunctionRef<void(int64_t task, int worker)> fn) {
  impl_->Run(num_tasks, fn);
}

}  // namespace mneme::engine
