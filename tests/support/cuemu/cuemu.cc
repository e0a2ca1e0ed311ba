#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "tests/support/cuemu/counts.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CUEMU_ASAN 1
#endif
#if defined(CUEMU_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

struct CuemuStream {
  const int device;
  // Not done yet, oldest first. An operation may make another stream run.
  std::deque<std::function<void()>> waiting;
  int64_t enqueued = 0, done = 0;
};
struct CuemuEvent {
  const int device;
  CuemuStream* stream = nullptr;
  int64_t after = 0;  // how many of the stream's operations
};

namespace cuemu {
namespace {

constexpr size_t kPage = kCuemuPage;
constexpr size_t kArenaBytes = size_t{32} << 30;
constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kSharedWithoutAsking = 48 << 10;
constexpr size_t kSharedAtMost = 99 << 10;
constexpr unsigned kThreadsAtMost = 1024;

// CUEMU_ORDER: forward, reverse or a number, the seed of a random one.
// CUEMU_STREAMS: lazy (as late as allowed) or eager.
// CUEMU_DEVICES: how many there are; 0 behaves like a machine without a driver.
// CUEMU_MEMORY: bytes of a device's memory.
// CUEMU_FAULT: a file that says what fails next; see OrderedFault.
// CUEMU_PROTECT: with 0 the host may touch device memory, which saves the calls that forbid it.
// CUEMU_TOUCHED: with 1 the pages that each launch reads and writes are counted.
std::string Setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

size_t PagesFor(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Memory that the host cannot touch but while an operation runs. Allocations end right before a
// page that nobody can touch.
class Arena {
 public:
  Arena() {
    base_ = static_cast<std::byte*>(
        mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base_ == MAP_FAILED) {
      std::perror("cuemu: mmap");
      std::abort();
    }
  }

  void* Allocate(size_t bytes) {
    const size_t span = PagesFor(std::max<size_t>(bytes, 1)) + kPage;
    if (used_bytes_ + span > capacity_) return nullptr;
    size_t at = end_;
    const auto free = free_.find(span);
    if (free != free_.end()) {
      at = free->second;
      free_.erase(free);
    } else {
      if (end_ + span > kArenaBytes) return nullptr;
      end_ += span;
    }
    used_bytes_ += span;
    // 256-byte alignment, as CUDA promises.
    const size_t room = (bytes + 255) / 256 * 256;
    std::byte* address = base_ + at + (span - kPage - std::min(room, span - kPage));
    blocks_[address] = {at, span};
    mprotect(base_ + at, span - kPage, PROT_READ | PROT_WRITE);
    std::fill_n(base_ + at, span - kPage, std::byte{0xff});
    if (!open_) mprotect(base_ + at, span - kPage, PROT_NONE);
    return address;
  }

  bool Free(void* address) {
    const auto found = blocks_.find(static_cast<std::byte*>(address));
    if (found == blocks_.end()) return false;
    const auto [at, span] = found->second;
    mprotect(base_ + at, span, PROT_NONE);
    madvise(base_ + at, span, MADV_DONTNEED);
    free_.emplace(span, at);
    used_bytes_ -= span;
    blocks_.erase(found);
    return true;
  }

  void Open() {
    if (open_) return;
    open_ = true;
    for (const auto& [address, block] : blocks_) {
      mprotect(base_ + block.first, block.second - kPage, PROT_READ | PROT_WRITE);
    }
  }
  void Close() {
    if (always_open_) return;
    open_ = false;
    mprotect(base_, end_, PROT_NONE);
  }
  bool open() const { return open_; }
  bool Has(const void* address) const {
    return blocks_.contains(static_cast<std::byte*>(const_cast<void*>(address)));
  }

  // Between these every page is counted that is read before it is written, or written.
  void Watch() {
    for (const auto& [address, block] : blocks_) {
      mprotect(base_ + block.first, block.second - kPage, PROT_NONE);
    }
  }
  void Unwatch() {
    for (const auto& [address, block] : blocks_) {
      mprotect(base_ + block.first, block.second - kPage, PROT_READ | PROT_WRITE);
    }
  }
  // Lets the access to a watched page happen; false where there is no memory. Of a signal's
  // handler: nothing else runs.
  bool Touch(void* at, bool writes, CuemuCounts& counts) {
    auto* address = static_cast<std::byte*>(at);
    if (address < base_ || address >= base_ + end_) return false;
    auto block = blocks_.upper_bound(address);
    const size_t offset = address - base_;
    const auto holds = [&](const auto& entry) {
      const auto [begin, span] = entry.second;
      return offset >= begin && offset < begin + span - kPage;
    };
    // A block's first page begins before its address.
    if (block == blocks_.end() || !holds(*block)) {
      if (block == blocks_.begin() || !holds(*--block)) return false;
    }
    mprotect(base_ + offset / kPage * kPage, kPage, writes ? PROT_READ | PROT_WRITE : PROT_READ);
    ++(writes ? counts.pages_written : counts.pages_read);
    return true;
  }

  size_t capacity() const { return capacity_; }
  size_t used() const { return used_bytes_; }

 private:
  std::byte* base_;
  size_t end_ = 0;
  size_t used_bytes_ = 0;
  const size_t capacity_ =
      std::min(kArenaBytes / 2, static_cast<size_t>(std::strtoull(
                                    Setting("CUEMU_MEMORY", "8589934592").c_str(), nullptr, 10)));
  const bool always_open_ = Setting("CUEMU_PROTECT", "1") == "0";
  bool open_ = always_open_;
  std::map<std::byte*, std::pair<size_t, size_t>> blocks_;  // address -> place, span
  std::multimap<size_t, size_t> free_;                      // span -> place
};

// ---- one block of threads

struct Site {
  const char* file = nullptr;
  int line = 0;
  int counter = 0;
};

struct Thread {
  enum State { kReady, kAtBarrier, kAtCollective, kDone };
  void* stack_pointer = nullptr;
  std::byte* stack = nullptr;
  State state = kReady;
  unsigned place = 0;  // in the block's order
  uint3 index{};
  Site barrier;
  void* call = nullptr;  // of the collective that it waits in
  void* fake_stack = nullptr;
#if defined(CUEMU_TSAN)
  void* tsan = nullptr;
#endif
};

struct Warp {
  unsigned lanes = 0;     // that the block has
  unsigned returned = 0;  // of them
  // Where all that wait do so.
  unsigned waiting = 0;
  unsigned mask = 0;
  const char* kind = nullptr;
};

struct Launch {
  const std::function<void()>* body = nullptr;
  dim3 grid, block;
  size_t shared_bytes = 0;
};

extern "C" void cuemu_switch(void** from, void* to);
asm(R"(
.text
.globl cuemu_switch
.hidden cuemu_switch
.type cuemu_switch,@function
cuemu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuemu_switch,.-cuemu_switch
)");

class Executor {
 public:
  // False after a fault.
  bool Run(const Launch& launch, Arena& arena);

  void SyncThreads(Site site);
  void WarpCollective(unsigned mask, const char* kind, void* call, void (*compute)(const Lanes&));
  [[noreturn]] void Fault(const char* what);
  std::byte* shared() { return shared_.get(); }

 private:
  static void Entry();
  void RunBlock();
  void Prepare(Thread& thread);
  void SwitchTo(Thread& thread);
  void SwitchBack(bool last);
  bool ReleaseBarrier();
  void MakeReady(Thread& thread) {
    thread.state = Thread::kReady;
    ready_[thread.place / 64] |= uint64_t{1} << thread.place % 64;
  }
  std::string Where() const;

  Launch launch_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<uint64_t> ready_;  // a bit for each place of the order
  Thread* current_ = nullptr;
  void* scheduler_ = nullptr;
  bool faulted_ = false;
  std::unique_ptr<std::byte[]> shared_;
  std::mt19937_64 random_{7};
#if defined(CUEMU_ASAN)
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_size_ = 0;
#endif
#if defined(CUEMU_TSAN)
  void* scheduler_tsan_ = nullptr;
  char barrier_token_ = 0;
#endif
};

// What a test orders to fail. It writes "OPERATION COUNT DEVICE" into the file that CUEMU_FAULT
// names: the COUNT-th launch, copy or malloc on DEVICE from then on. The file is gone once the
// order is taken. A malloc finds no memory, this one time; the others are faults of the device for
// good.
class OrderedFault {
 public:
  bool IsDue(const char* operation, int device) {
    if (path_.empty()) return false;
    if (std::ifstream file(path_); file >> operation_ >> count_ >> device_) {
      std::remove(path_.c_str());
    }
    return operation_ == operation && device_ == device && --count_ == 0;
  }

 private:
  const std::string path_ = Setting("CUEMU_FAULT", "");
  std::string operation_;
  int64_t count_ = 0;
  int device_ = 0;
};

struct Device {
  Arena arena;
  std::vector<CuemuStream*> streams;
  cudaError_t sticky = cudaSuccess;
};

struct State {
  std::recursive_mutex mutex;
  Executor executor;
  std::map<std::byte*, size_t> pinned;
  std::map<const void*, size_t> shared_allowed;
  CuemuCounts counts;        // of all devices
  Arena* watched = nullptr;  // while a launch runs whose pages are counted
  const bool touched = Setting("CUEMU_TOUCHED", "0") == "1";
  OrderedFault fault;
  const bool eager = Setting("CUEMU_STREAMS", "lazy") == "eager";
  std::vector<Device> devices{
      static_cast<size_t>(std::max(0, std::atoi(Setting("CUEMU_DEVICES", "1").c_str())))};
};
State& Global() {
  static State* const state = new State;
  return *state;
}

// Of the thread, as in CUDA.
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

Device& Current() { return Global().devices[current_device]; }

// ---- what launches touch

// Anything else is as it was without us.
void OnAccess(int signal, siginfo_t* info, void* context) {
  // Bit 1 of a page fault's error code: the access was a write.
  const bool writes = (static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2) != 0;
  State& state = Global();
  if (!state.watched->Touch(info->si_addr, writes, state.counts)) std::signal(signal, SIG_DFL);
}

// Watches the memory of the device that a launch is on, for as long as it lives.
class Watching {
 public:
  explicit Watching(Arena& arena) {
    if (!Global().touched) return;
    Global().watched = &arena;
    struct sigaction action {};
    action.sa_sigaction = &OnAccess;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &before_);
    arena.Watch();
  }
  ~Watching() {
    if (!Global().touched) return;
    Global().watched->Unwatch();
    sigaction(SIGSEGV, &before_, nullptr);
  }
  Watching(const Watching&) = delete;
  Watching& operator=(const Watching&) = delete;

 private:
  struct sigaction before_ {};
};

// ---- orders

std::vector<unsigned> Order(unsigned count, std::mt19937_64& random) {
  static const std::string order = Setting("CUEMU_ORDER", "forward");
  std::vector<unsigned> indices(count);
  std::iota(indices.begin(), indices.end(), 0u);
  if (order == "reverse") std::reverse(indices.begin(), indices.end());
  if (order != "reverse" && order != "forward") {
    static bool seeded = false;
    if (!seeded) random.seed(std::strtoull(order.c_str(), nullptr, 10));
    seeded = true;
    std::shuffle(indices.begin(), indices.end(), random);
  }
  return indices;
}

void Executor::Entry() {
  Executor& self = Global().executor;
#if defined(CUEMU_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &self.scheduler_bottom_, &self.scheduler_size_);
#endif
#if defined(CUEMU_TSAN)
  __tsan_acquire(&self.barrier_token_);
#endif
  (*self.launch_.body)();
#if defined(CUEMU_TSAN)
  __tsan_release(&self.barrier_token_);
#endif
  self.current_->state = Thread::kDone;
  const size_t index = self.current_ - self.threads_.data();
  self.warps_[index / 32].returned |= 1u << index % 32;
  self.SwitchBack(/*last=*/true);
  std::abort();
}

void Executor::Prepare(Thread& thread) {
  if (thread.stack == nullptr) {
    // A page below each stack catches its overflow.
    auto* at = static_cast<std::byte*>(mmap(nullptr, kStackBytes + kPage, PROT_NONE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (at == MAP_FAILED) std::abort();
    thread.stack = at + kPage;
    mprotect(thread.stack, kStackBytes, PROT_READ | PROT_WRITE);
  }
#if defined(CUEMU_ASAN)
  __asan_unpoison_memory_region(thread.stack, kStackBytes);
#endif
#if defined(CUEMU_TSAN)
  if (thread.tsan != nullptr) __tsan_destroy_fiber(thread.tsan);
  thread.tsan = __tsan_create_fiber(0);
#endif
  // Stacks whose tops lay at the same place of a page would fight for the same lines of the cache.
  const size_t number = &thread - threads_.data();
  auto* top = reinterpret_cast<void**>(thread.stack + kStackBytes - number * 5 % 64 * 64);
  *--top = nullptr;  // keeps the stack aligned as at a function's entry
  *--top = reinterpret_cast<void*>(&Entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.stack_pointer = top;
  thread.state = Thread::kReady;
  thread.fake_stack = nullptr;
}

void Executor::SwitchTo(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
#if defined(CUEMU_ASAN)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack_, thread.stack, kStackBytes);
#endif
#if defined(CUEMU_TSAN)
  __tsan_switch_to_fiber(thread.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  cuemu_switch(&scheduler_, thread.stack_pointer);
#if defined(CUEMU_ASAN)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
}

void Executor::SwitchBack(bool last) {
  Thread& thread = *current_;
#if defined(CUEMU_ASAN)
  __sanitizer_start_switch_fiber(last ? nullptr : &thread.fake_stack, scheduler_bottom_,
                                 scheduler_size_);
#endif
#if defined(CUEMU_TSAN)
  __tsan_switch_to_fiber(scheduler_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  cuemu_switch(&thread.stack_pointer, scheduler_);
#if defined(CUEMU_ASAN)
  __sanitizer_finish_switch_fiber(thread.fake_stack, &scheduler_bottom_, &scheduler_size_);
#endif
}

std::string Executor::Where() const {
  char text[160];
  std::snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u)", blockIdx.x,
                blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  return text;
}

void Executor::Fault(const char* what) {
  std::fprintf(stderr, "cuemu: %s: %s\n", Where().c_str(), what);
  faulted_ = true;
  SwitchBack(/*last=*/true);  // nobody comes back: a faulted launch runs no thread again
  std::abort();
}

void Executor::SyncThreads(Site site) {
  current_->barrier = site;
  current_->state = Thread::kAtBarrier;
#if defined(CUEMU_TSAN)
  __tsan_release(&barrier_token_);
#endif
  SwitchBack(false);
#if defined(CUEMU_TSAN)
  __tsan_acquire(&barrier_token_);
#endif
}

void Executor::WarpCollective(unsigned mask, const char* kind, void* call,
                              void (*compute)(const Lanes&)) {
  Thread* const self = current_;
  const size_t index = self - threads_.data(), first = index / 32 * 32;
  if ((mask >> (index - first) & 1) == 0)
    Fault("a lane calls a collective whose mask it is not in");
  self->call = call;
  self->state = Thread::kAtCollective;
  Warp& warp = warps_[index / 32];
#if defined(CUEMU_TSAN)
  __tsan_release(&warp);
#endif
  if ((mask & ~warp.lanes) != 0) Fault("a collective's mask names lanes beyond the block");
  if ((mask & warp.returned) != 0) Fault("a collective's mask names a lane that has returned");
  if (warp.waiting == 0) {
    warp.mask = mask;
    warp.kind = kind;
  } else if (warp.mask != mask || (warp.kind != kind && std::string_view(warp.kind) != kind)) {
    Fault("lanes of a warp wait in different collectives");
  }
  warp.waiting |= 1u << (index - first);
  if (warp.waiting == mask) {
    warp.waiting = 0;
    Lanes lanes{};
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      Thread& other = threads_[first + std::countr_zero(rest)];
      lanes.call[std::countr_zero(rest)] = other.call;
      if (&other != self) MakeReady(other);
    }
    self->state = Thread::kReady;
#if defined(CUEMU_TSAN)
    __tsan_acquire(&warp);
#endif
    compute(lanes);
#if defined(CUEMU_TSAN)
    __tsan_release(&warp);
#endif
  } else {
    SwitchBack(false);
  }
#if defined(CUEMU_TSAN)
  __tsan_acquire(&warp);
#endif
}

bool Executor::ReleaseBarrier() {
  const Thread* first = nullptr;
  for (const Thread& thread : threads_) {
    if (thread.state == Thread::kDone) continue;
    if (thread.state != Thread::kAtBarrier) return false;
    if (first == nullptr) first = &thread;
    if (thread.barrier.counter != first->barrier.counter ||
        thread.barrier.file != first->barrier.file) {
      std::fprintf(
          stderr, "cuemu: threads of a block wait at different barriers: %s:%d and %s:%d\n",
          first->barrier.file, first->barrier.line, thread.barrier.file, thread.barrier.line);
      faulted_ = true;
      return false;
    }
  }
  if (first == nullptr) return false;
  for (Thread& thread : threads_) {
    if (thread.state == Thread::kAtBarrier) MakeReady(thread);
  }
  return true;
}

void Executor::RunBlock() {
  const unsigned count = launch_.block.x * launch_.block.y * launch_.block.z;
  if (launch_.shared_bytes > 0) {
    // Of its own exact size, so that a sanitizer sees a step over its end.
    shared_.reset(new std::byte[launch_.shared_bytes]);
    std::fill_n(shared_.get(), launch_.shared_bytes, std::byte{0xff});
  } else {
    shared_.reset();
  }
  warps_.assign((count + 31) / 32, Warp{});
  for (unsigned i = 0; i < count; ++i) {
    warps_[i / 32].lanes |= 1u << i % 32;
    threads_[i].index = {i % launch_.block.x, i / launch_.block.x % launch_.block.y,
                         i / (launch_.block.x * launch_.block.y)};
    Prepare(threads_[i]);
  }
#if defined(CUEMU_TSAN)
  scheduler_tsan_ = __tsan_get_current_fiber();
  __tsan_release(&barrier_token_);
#endif
  const std::vector<unsigned> order = Order(count, random_);
  ready_.assign((count + 63) / 64, 0);
  for (unsigned place = 0; place < count; ++place) {
    threads_[order[place]].place = place;
    MakeReady(threads_[order[place]]);
  }
  for (;;) {
    bool ran = false;
    for (uint64_t& word : ready_) {
      // Who becomes ready meanwhile has its turn in this round if its place is still to come.
      for (unsigned from = 0; from < 64 && word >> from != 0; ++from) {
        from += std::countr_zero(word >> from);
        word &= ~(uint64_t{1} << from);
        ran = true;
        SwitchTo(threads_[order[(&word - ready_.data()) * 64 + from]]);
        if (faulted_) return;
      }
    }
    if (ran) continue;
    if (std::all_of(threads_.begin(), threads_.end(),
                    [](const Thread& thread) { return thread.state == Thread::kDone; })) {
      break;
    }
    if (ReleaseBarrier()) continue;
    if (!faulted_) {
      for (const Thread& thread : threads_) {
        if (thread.state == Thread::kAtBarrier) {
          std::fprintf(stderr, "cuemu: block (%u, %u, %u), thread %u waits at %s:%d\n", blockIdx.x,
                       blockIdx.y, blockIdx.z, thread.index.x, thread.barrier.file,
                       thread.barrier.line);
          break;
        }
      }
      for (size_t i = 0; i < warps_.size(); ++i) {
        if (warps_[i].waiting == 0) continue;
        std::fprintf(stderr, "cuemu: block (%u, %u, %u), warp %zu: lanes %08x of %08x wait in %s\n",
                     blockIdx.x, blockIdx.y, blockIdx.z, i, warps_[i].waiting, warps_[i].mask,
                     warps_[i].kind);
      }
      std::fprintf(stderr, "cuemu: deadlock\n");
      faulted_ = true;
    }
    return;
  }
#if defined(CUEMU_TSAN)
  __tsan_acquire(&barrier_token_);
#endif
}

bool Executor::Run(const Launch& launch, Arena& arena) {
  launch_ = launch;
  faulted_ = false;
  const unsigned count = launch.block.x * launch.block.y * launch.block.z;
  // Stacks stay for later launches.
  static std::vector<std::byte*> stacks;
  std::vector<Thread> threads(count);
  for (unsigned i = 0; i < count && i < stacks.size(); ++i) threads[i].stack = stacks[i];
  threads_ = std::move(threads);
  blockDim = launch.block;
  gridDim = launch.grid;
  const unsigned blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  const Watching watching(arena);
  for (const unsigned block : Order(blocks, random_)) {
    blockIdx = {block % launch.grid.x, block / launch.grid.x % launch.grid.y,
                block / (launch.grid.x * launch.grid.y)};
    RunBlock();
    if (faulted_) break;
  }
  for (unsigned i = static_cast<unsigned>(stacks.size()); i < count; ++i) {
    stacks.push_back(threads_[i].stack);
  }
#if defined(CUEMU_TSAN)
  for (Thread& thread : threads_) {
    if (thread.tsan != nullptr) __tsan_destroy_fiber(thread.tsan);
  }
#endif
  return !faulted_;
}

// ---- streams

cudaError_t KeepOf(const Device& device, cudaError_t error) {
  if (device.sticky != cudaSuccess) error = device.sticky;
  if (error != cudaSuccess) last_error = error;
  return error;
}
cudaError_t Keep(cudaError_t error) { return KeepOf(Current(), error); }
// Of a call to a runtime that has found no device.
cudaError_t WithoutDriver() { return last_error = cudaErrorInsufficientDriver; }

// Runs operations until `count` of the stream's are done.
void RunUntil(CuemuStream& stream, int64_t count) {
  Device& device = Global().devices[stream.device];
  if (stream.done >= count) return;
  const bool outermost = !device.arena.open();
  if (outermost) device.arena.Open();
  while (stream.done < count && !stream.waiting.empty()) {
    const std::function<void()> operation = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    if (device.sticky == cudaSuccess) operation();
    ++stream.done;
  }
  if (outermost) device.arena.Close();
}

void RunAll(const Device& device) {
  for (CuemuStream* stream : device.streams) RunUntil(*stream, stream->enqueued);
}
void RunAll() {
  for (const Device& device : Global().devices) RunAll(device);
}

cudaError_t Add(CuemuStream* stream, std::function<void()> operation) {
  if (stream == nullptr) return Keep(cudaErrorInvalidResourceHandle);  // the NULL stream is banned
  stream->waiting.push_back(std::move(operation));
  ++stream->enqueued;
  if (Global().eager) RunUntil(*stream, stream->enqueued);
  return KeepOf(Global().devices[stream->device], cudaSuccess);
}

// What takes an operation's place when a test has ordered a fault.
cudaError_t AddFault(CuemuStream* stream, cudaError_t error) {
  return Add(stream, [stream, error] {
    std::fprintf(stderr, "cuemu: a fault as ordered, on device %d\n", stream->device);
    Global().devices[stream->device].sticky = error;
  });
}

bool Pinned(const void* at) {
  const auto* address = static_cast<const std::byte*>(at);
  const auto& pinned = Global().pinned;
  auto next = pinned.upper_bound(const_cast<std::byte*>(address));
  if (next == pinned.begin()) return false;
  --next;
  return address < next->first + next->second;
}

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace

cudaError_t AllowShared(const void* kernel, size_t bytes) {
  const Lock lock(Global().mutex);
  if (bytes > kSharedAtMost) return Keep(cudaErrorInvalidValue);
  Global().shared_allowed[kernel] = bytes;
  return Keep(cudaSuccess);
}

cudaError_t Enqueue(const cudaLaunchConfig_t& config, const void* kernel,
                    std::function<void()> thread) {
  State& state = Global();
  const Lock lock(state.mutex);
  const auto allowed = state.shared_allowed.find(kernel);
  const size_t most =
      allowed == state.shared_allowed.end() ? kSharedWithoutAsking : allowed->second;
  const size_t threads = size_t{config.blockDim.x} * config.blockDim.y * config.blockDim.z;
  const dim3& grid = config.gridDim;
  if (threads == 0 || threads > kThreadsAtMost || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
      config.dynamicSmemBytes > std::max(most, kSharedWithoutAsking)) {
    std::fprintf(stderr, "cuemu: grid (%u, %u, %u), %zu threads, %zu bytes shared: refused\n",
                 grid.x, grid.y, grid.z, threads, config.dynamicSmemBytes);
    return Keep(cudaErrorInvalidValue);
  }
  if (config.stream != nullptr && config.stream->device != current_device) {
    return Keep(cudaErrorInvalidResourceHandle);
  }
  ++state.counts.launches;
  if (state.fault.IsDue("launch", current_device)) {
    return AddFault(config.stream, cudaErrorIllegalAddress);
  }
  return Add(config.stream,
             [launch = Launch{nullptr, grid, config.blockDim, config.dynamicSmemBytes},
              thread = std::move(thread), device = &Current()]() mutable {
               launch.body = &thread;
               if (!Global().executor.Run(launch, device->arena)) {
                 device->sticky = cudaErrorLaunchFailure;
               }
             });
}

std::byte* SharedMemory() { return Global().executor.shared(); }
void Fault(const char* what) { Global().executor.Fault(what); }
void SyncThreads(const char* file, int line, int counter) {
  Global().executor.SyncThreads({file, line, counter});
}
void WarpCollective(unsigned mask, const char* kind, void* call, void (*compute)(const Lanes&)) {
  Global().executor.WarpCollective(mask, kind, call, compute);
}

}  // namespace cuemu

using cuemu::Add;
using cuemu::Current;
using cuemu::Global;
using cuemu::Keep;
using cuemu::KeepOf;
using cuemu::Lock;

cudaError_t cudaGetDeviceCount(int* count) {
  const Lock lock(Global().mutex);
  if (Global().devices.empty()) return cuemu::WithoutDriver();
  *count = static_cast<int>(Global().devices.size());
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  const Lock lock(Global().mutex);
  if (Global().devices.empty()) return cuemu::WithoutDriver();
  if (device < 0 || device >= static_cast<int>(Global().devices.size())) {
    return Keep(cudaErrorInvalidDevice);
  }
  cuemu::current_device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  const Lock lock(Global().mutex);
  cuemu::RunAll(Current());
  return Keep(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device) {
  const Lock lock(Global().mutex);
  if (device < 0 || device >= static_cast<int>(Global().devices.size())) {
    return Keep(cudaErrorInvalidDevice);
  }
  *prop = {};
  std::snprintf(prop->name, sizeof prop->name, "emulated on the host");
  prop->totalGlobalMem = Global().devices[device].arena.capacity();
  prop->sharedMemPerBlock = cuemu::kSharedWithoutAsking;
  prop->sharedMemPerBlockOptin = cuemu::kSharedAtMost;
  prop->major = 8;
  prop->minor = 0;
  prop->multiProcessorCount = 3;
  return Keep(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const Lock lock(Global().mutex);
  *total_bytes = Current().arena.capacity();
  *free_bytes = *total_bytes - Current().arena.used();
  return Keep(cudaSuccess);
}

cudaError_t cudaMalloc(void** at, size_t bytes) {
  const Lock lock(Global().mutex);
  if (Current().sticky != cudaSuccess) return Keep(cudaSuccess);
  if (Global().fault.IsDue("malloc", cuemu::current_device)) return Keep(cudaErrorMemoryAllocation);
  void* address = Current().arena.Allocate(bytes);
  if (address == nullptr) return Keep(cudaErrorMemoryAllocation);
  *at = address;
  return Keep(cudaSuccess);
}

cudaError_t cudaFree(void* at) {
  const Lock lock(Global().mutex);
  if (at == nullptr) return Keep(cudaSuccess);
  for (cuemu::Device& device : Global().devices) {
    if (!device.arena.Has(at)) continue;
    cuemu::RunAll(device);
    device.arena.Free(at);
    return KeepOf(device, cudaSuccess);
  }
  return Keep(cudaErrorInvalidDevicePointer);
}

cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned) {
  const Lock lock(Global().mutex);
  auto* address = static_cast<std::byte*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  if (address == nullptr) return Keep(cudaErrorMemoryAllocation);
  std::fill_n(address, bytes, std::byte{0xff});
  Global().pinned[address] = bytes;
  *at = address;
  return Keep(cudaSuccess);
}

cudaError_t cudaFreeHost(void* at) {
  const Lock lock(Global().mutex);
  if (at == nullptr) return Keep(cudaSuccess);
  cuemu::RunAll();
  if (Global().pinned.erase(static_cast<std::byte*>(at)) == 0) return Keep(cudaErrorInvalidValue);
  std::free(at);
  return Keep(cudaSuccess);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Lock lock(Global().mutex);
  *stream = new CuemuStream{.device = cuemu::current_device};
  Current().streams.push_back(*stream);
  return Keep(cudaSuccess);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(Global().mutex);
  cuemu::RunUntil(*stream, stream->enqueued);
  cuemu::Device& device = Global().devices[stream->device];
  std::erase(device.streams, stream);
  delete stream;
  return KeepOf(device, cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(Global().mutex);
  cuemu::RunUntil(*stream, stream->enqueued);
  return KeepOf(Global().devices[stream->device], cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Lock lock(Global().mutex);
  if (event->stream == nullptr) return Keep(cudaSuccess);
  return Add(stream,
             [other = event->stream, after = event->after] { cuemu::RunUntil(*other, after); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CuemuEvent{.device = cuemu::current_device};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(Global().mutex);
  if (event->device != stream->device) return Keep(cudaErrorInvalidResourceHandle);
  event->stream = stream;
  event->after = stream->enqueued;
  return Keep(cudaSuccess);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(Global().mutex);
  if (event->stream != nullptr) cuemu::RunUntil(*event->stream, event->after);
  return KeepOf(Global().devices[event->device], cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const Lock lock(Global().mutex);
  ++Global().counts.copies;
  Global().counts.copied_bytes += static_cast<int64_t>(bytes);
  if (stream != nullptr && Global().fault.IsDue("copy", stream->device)) {
    cuemu::AddFault(stream, cudaErrorECCUncorrectable);
  } else if (kind == cudaMemcpyHostToDevice && !cuemu::Pinned(from)) {
    // Pageable memory is read before the call returns.
    auto staged = std::make_shared<std::vector<std::byte>>(bytes);
    std::copy_n(static_cast<const std::byte*>(from), bytes, staged->begin());
    Add(stream, [=] { memcpy(to, staged->data(), bytes); });
  } else {
    Add(stream, [=] { memcpy(to, from, bytes); });
  }
  if (stream == nullptr) return Keep(cudaErrorInvalidResourceHandle);
  if (kind == cudaMemcpyDeviceToHost && !cuemu::Pinned(to)) return cudaStreamSynchronize(stream);
  return KeepOf(Global().devices[stream->device], cudaSuccess);
}

cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
  const Lock lock(Global().mutex);
  return Add(stream, [=] { memset(at, value, bytes); });
}

const CuemuCounts* cuemu_counts() { return &Global().counts; }

cudaError_t cudaGetLastError() {
  const Lock lock(Global().mutex);
  const cudaError_t last = cuemu::last_error;
  cuemu::last_error = cudaSuccess;
  const bool sticks = !Global().devices.empty() && Current().sticky != cudaSuccess;
  return sticks ? Current().sticky : last;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorInvalidDevicePointer:
      return "cudaErrorInvalidDevicePointer";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorECCUncorrectable:
      return "cudaErrorECCUncorrectable";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
  }
  return "unknown";
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorInsufficientDriver) {
    return "CUDA driver version is insufficient for CUDA runtime version";
  }
  return cudaGetErrorName(error);
}
