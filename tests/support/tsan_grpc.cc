// Shows ThreadSanitizer what gRPC orders. Linked into programs that use gRPC, in the tsan preset.
//
// Debian's gRPC and Abseil are not instrumented: ThreadSanitizer does not see their locks and
// atomics, so everything that one thread of ours hands to gRPC and another gets back would look
// like a race. Suppressing that would hide the races of our own reactors, which all run on gRPC's
// threads. Instead the few functions through which gRPC synchronises are wrapped here, under the
// libraries' own names (the program's symbols come first), with exactly the order that they give:
//
// - absl::Mutex, absl::CondVar: who locks sees what was done before the unlocking.
// - a batch of operations on a call: its callback sees what was done before the batch was started.
// - a server's call: OnCancel and OnDone see what was done before the last condition for them came
//   true (two counters, decremented partly inside the library).
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpcpp/support/server_callback.h>
#include <link.h>
#include <sanitizer/tsan_interface.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "absl/synchronization/mutex.h"

namespace {

// The library's function behind a wrapper. Not a static local: its guard would order threads.
template <typename Function>
Function* Next(std::atomic<void*>& cache, const char* symbol) {
  void* found = cache.load(std::memory_order_relaxed);
  if (found == nullptr) {
    found = dlsym(RTLD_NEXT, symbol);
    if (found == nullptr) {
      std::fprintf(stderr, "tsan_grpc.cc: no %s behind the wrapper\n", symbol);
      std::abort();
    }
    cache.store(found, std::memory_order_relaxed);
  }
  return reinterpret_cast<Function*>(found);
}

#define MNEME_ABSL_SYMBOL(rest) "_ZN4absl7debian3" rest

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static std::atomic<void*> next;
  Next<void(Mutex*)>(next, MNEME_ABSL_SYMBOL("5Mutex4LockEv"))(this);
  __tsan_acquire(this);
}

void Mutex::Unlock() {
  static std::atomic<void*> next;
  __tsan_release(this);
  Next<void(Mutex*)>(next, MNEME_ABSL_SYMBOL("5Mutex6UnlockEv"))(this);
}

bool Mutex::TryLock() {
  static std::atomic<void*> next;
  const bool locked = Next<bool(Mutex*)>(next, MNEME_ABSL_SYMBOL("5Mutex7TryLockEv"))(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void CondVar::Wait(Mutex* mutex) {
  static std::atomic<void*> next;
  __tsan_release(mutex);
  Next<void(CondVar*, Mutex*)>(next, MNEME_ABSL_SYMBOL("7CondVar4WaitEPNS0_5MutexE"))(this, mutex);
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static std::atomic<void*> next;
  __tsan_release(mutex);
  const bool expired = Next<bool(CondVar*, Mutex*, Duration)>(
      next, MNEME_ABSL_SYMBOL("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE"))(this, mutex,
                                                                                       timeout);
  __tsan_acquire(mutex);
  return expired;
}

ABSL_NAMESPACE_END
}  // namespace absl

namespace {

using Functor = grpc_completion_queue_functor;
using FunctorRun = void (*)(Functor*, int);

// gRPC++ has two functors for callbacks; a slot each, and some to spare.
constexpr int kSlots = 4;
std::atomic<FunctorRun> original_runs[kSlots];

template <int kSlot>
void RunOrdered(Functor* functor, int ok) {
  __tsan_acquire(functor);
  original_runs[kSlot].load(std::memory_order_relaxed)(functor, ok);
}
constexpr FunctorRun kOrderedRuns[kSlots] = {RunOrdered<0>, RunOrdered<1>, RunOrdered<2>,
                                             RunOrdered<3>};

struct CodeSearch {
  uintptr_t address;
  bool found;
};

// The tag of a batch is a functor only if its completion queue runs callbacks; else it is an object
// with a virtual table. A functor begins with the address of code.
bool IsCode(uintptr_t address) {
  CodeSearch search{address, false};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto* search = static_cast<CodeSearch*>(data);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
          if (segment.p_type == PT_LOAD && (segment.p_flags & PF_X) != 0 &&
              search->address >= begin && search->address < begin + segment.p_memsz) {
            search->found = true;
          }
        }
        return search->found ? 1 : 0;
      },
      &search);
  return search.found;
}

__attribute__((no_sanitize("thread"))) void OrderCallback(void* tag) {
  auto* functor = static_cast<Functor*>(tag);
  const FunctorRun run = functor->functor_run;
  for (const FunctorRun ordered : kOrderedRuns) {
    if (run == ordered) return;
  }
  for (int slot = 0; slot < kSlots; ++slot) {
    FunctorRun known = original_runs[slot].load(std::memory_order_relaxed);
    if (known == nullptr) {
      if (!IsCode(reinterpret_cast<uintptr_t>(run))) return;
      if (original_runs[slot].compare_exchange_strong(known, run, std::memory_order_relaxed)) {
        known = run;
      }
    }
    if (known == run) {
      functor->functor_run = kOrderedRuns[slot];
      return;
    }
  }
  if (!IsCode(reinterpret_cast<uintptr_t>(run))) return;
  std::fprintf(stderr, "tsan_grpc.cc: more kinds of callbacks than kSlots\n");
  std::abort();
}

// The addresses of ServerCallbackCall's private counters.
template <auto kMember>
struct CancelConditions {
  friend std::atomic_int* CancelConditionsOf(grpc::internal::ServerCallbackCall* call) {
    return &(call->*kMember);
  }
};
template <auto kMember>
struct OutstandingCallbacks {
  friend std::atomic_int* OutstandingCallbacksOf(grpc::internal::ServerCallbackCall* call) {
    return &(call->*kMember);
  }
};
std::atomic_int* CancelConditionsOf(grpc::internal::ServerCallbackCall* call);
std::atomic_int* OutstandingCallbacksOf(grpc::internal::ServerCallbackCall* call);
template struct CancelConditions<
    &grpc::internal::ServerCallbackCall::on_cancel_conditions_remaining_>;
template struct OutstandingCallbacks<&grpc::internal::ServerCallbackCall::callbacks_outstanding_>;

}  // namespace

extern "C" grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* operations,
                                                 size_t count, void* tag, void* reserved) {
  static std::atomic<void*> next;
  if (tag != nullptr) {
    OrderCallback(tag);
    __tsan_release(tag);
  }
  return Next<grpc_call_error(grpc_call*, const grpc_op*, size_t, void*, void*)>(
      next, "grpc_call_start_batch")(call, operations, count, tag, reserved);
}

namespace grpc::internal {

void ServerCallbackCall::CallOnCancel(ServerReactor* reactor) {
  static std::atomic<void*> next;
  __tsan_acquire(CancelConditionsOf(this));
  Next<void(ServerCallbackCall*, ServerReactor*)>(
      next, "_ZN4grpc8internal18ServerCallbackCall12CallOnCancelEPNS0_13ServerReactorE")(this,
                                                                                         reactor);
}

void ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  static std::atomic<void*> next;
  __tsan_acquire(OutstandingCallbacksOf(this));
  Next<void(ServerCallbackCall*, bool)>(
      next, "_ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb")(this, inline_ondone);
}

}  // namespace grpc::internal
