#include "tests/support/failing_new.h"

#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>

namespace {

std::atomic<size_t> fail_from_bytes{std::numeric_limits<size_t>::max()};
std::atomic<int> refused_count{0};

void* AllocateOrNull(size_t size) noexcept {
  if (size >= fail_from_bytes.load(std::memory_order_relaxed)) {
    ++refused_count;
    return nullptr;
  }
  return std::malloc(size > 0 ? size : 1);
}

void* Allocate(size_t size) {
  void* block = AllocateOrNull(size);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

}  // namespace

namespace mneme::test {

FailingNew::FailingNew(size_t from_bytes) {
  refused_count = 0;
  fail_from_bytes = from_bytes;
}
FailingNew::~FailingNew() { fail_from_bytes = std::numeric_limits<size_t>::max(); }
int FailingNew::refused() const { return refused_count; }

}  // namespace mneme::test

// All forms without an alignment, so that sanitizers see matching pairs.
void* operator new(size_t size) { return Allocate(size); }
void* operator new[](size_t size) { return Allocate(size); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return AllocateOrNull(size); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept { return AllocateOrNull(size); }
void operator delete(void* block) noexcept { std::free(block); }
void operator delete[](void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }
void operator delete[](void* block, size_t) noexcept { std::free(block); }
void operator delete(void* block, const std::nothrow_t&) noexcept { std::free(block); }
void operator delete[](void* block, const std::nothrow_t&) noexcept { std::free(block); }
