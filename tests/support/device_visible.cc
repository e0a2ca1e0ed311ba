#include "tests/support/device_visible.h"

#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace mneme::test {
namespace {

constexpr size_t kHeapBytes = size_t{1} << 30;
constexpr size_t kStackBytes = size_t{16} << 20;

[[noreturn]] void Die(const char* what, long code) {
  std::fprintf(stderr, "TESTED_BACKEND=cuda: %s (%ld)\n", what, code);
  std::abort();
}

// One heap, in one piece, that never shrinks and that no allocation leaves.
void GrowHeapOnce() {
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, INT32_MAX);
  mallopt(M_TOP_PAD, static_cast<int>(kHeapBytes - (size_t{64} << 20)));
  // More than is free, so that the heap grows now, by what mallopt said.
  void* volatile more = std::malloc(size_t{32} << 20);
  std::free(more);
  mallopt(M_TOP_PAD, 1 << 20);
}

// Where it lies.
void FindHeap(uintptr_t* begin, uintptr_t* end) {
  std::FILE* maps = std::fopen("/proc/self/maps", "r");
  if (maps == nullptr) Die("no /proc/self/maps", 0);
  char line[512];
  *begin = *end = 0;
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    if (std::strstr(line, "[heap]") == nullptr) continue;
    unsigned long from = 0, to = 0;
    if (std::sscanf(line, "%lx-%lx", &from, &to) != 2) continue;
    if (*begin == 0) *begin = from;
    *end = to;
  }
  std::fclose(maps);
  if (*end - *begin < kHeapBytes / 2)
    Die("the heap did not grow", static_cast<long>(*end - *begin));
}

// By the driver: tests have no toolkit. The names and numbers are those of cuda.h.
void ShowToDevice(uintptr_t begin, uintptr_t end) {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (driver == nullptr) Die(dlerror(), 0);
  const auto call = [&](const char* name, auto... args) {
    const auto function = reinterpret_cast<int (*)(decltype(args)...)>(dlsym(driver, name));
    if (function == nullptr) Die(name, 0);
    if (const int error = function(args...); error != 0) Die(name, error);
  };
  constexpr unsigned kPortable = 1, kDeviceMap = 2;
  int device = 0;
  void* context = nullptr;
  call("cuInit", 0u);
  call("cuDeviceGet", &device, 0);
  call("cuDevicePrimaryCtxRetain", &context, device);
  call("cuCtxSetCurrent", context);
  call("cuMemHostRegister_v2", reinterpret_cast<void*>(begin), size_t{end - begin},
       kPortable | kDeviceMap);
  unsigned long long there = 0;
  call("cuMemHostGetDevicePointer_v2", &there, reinterpret_cast<void*>(begin), 0u);
  if (there != begin) Die("the device has the heap at another address", static_cast<long>(there));
}

struct Call {
  int (*run)();
  int result;
};

}  // namespace

int RunVisibleToDevice(int (*run)()) {
  const char* backend = std::getenv("TESTED_BACKEND");
  // "heap" does all but ask the driver: so that this can be tried without a device.
  const char* trial = std::getenv("DEVICE_VISIBLE");
  const bool real = backend != nullptr && std::string_view(backend) == "cuda";
  if (!real && trial == nullptr) return run();

  GrowHeapOnce();
  uintptr_t begin = 0, end = 0;
  FindHeap(&begin, &end);
  if (real) ShowToDevice(begin, end);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  void* const stack = std::aligned_alloc(4096, kStackBytes);
  if (stack == nullptr || pthread_attr_setstack(&attributes, stack, kStackBytes) != 0) {
    Die("no stack", 0);
  }
  Call call{run, 1};
  pthread_t thread;
  const int error = pthread_create(
      &thread, &attributes,
      [](void* at) -> void* {
        auto* mine = static_cast<Call*>(at);
        mine->result = mine->run();
        return nullptr;
      },
      &call);
  if (error != 0) Die("no thread", error);
  pthread_join(thread, nullptr);
  uintptr_t now_begin = 0, now_end = 0;
  FindHeap(&now_begin, &now_end);
  if (now_end != end) Die("the heap grew beyond what the device was shown", 0);
  return call.result;
}

}  // namespace mneme::test
