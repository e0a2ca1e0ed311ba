#include "tests/support/failing_new.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>

namespace {

std::atomic<size_t> fail_from_bytes{std::numeric_limits<size_t>::max()};
std::atomic<int> refused_count{0};

bool Refuse(size_t size) {
  if (size < fail_from_bytes.load(std::memory_order_relaxed)) return false;
  ++refused_count;
  return true;
}

// The form of the standard library, or of the sanitizer, that stands behind ours.
template <typename Form>
Form* Find(std::atomic<Form*>& cache, const char* symbol) {
  auto* form = reinterpret_cast<Form*>(dlsym(RTLD_NEXT, symbol));
  if (form == nullptr) std::abort();
  cache.store(form, std::memory_order_relaxed);
  return form;
}
template <typename Form>
Form* Next(std::atomic<Form*>& cache, const char* symbol) {
  Form* form = cache.load(std::memory_order_relaxed);
  return form != nullptr ? form : Find(cache, symbol);
}

using Throwing = void*(size_t);
using Null = void*(size_t, const std::nothrow_t&) noexcept;
std::atomic<Throwing*> next_new, next_new_array;
std::atomic<Null*> next_new_null, next_new_array_null;

}  // namespace

namespace mneme::test {

FailingNew::FailingNew(size_t from_bytes) {
  refused_count = 0;
  fail_from_bytes = from_bytes;
}
FailingNew::~FailingNew() { fail_from_bytes = std::numeric_limits<size_t>::max(); }
int FailingNew::refused() const { return refused_count; }

}  // namespace mneme::test

// All forms without an alignment. Each ends in a jump to the next one, and operator delete is not
// replaced: ThreadSanitizer tells by the caller whether memory is gRPC's own (tsan.supp).
void* operator new(size_t size) {
  if (Refuse(size)) throw std::bad_alloc();
  return Next(next_new, "_Znwm")(size);
}
void* operator new[](size_t size) {
  if (Refuse(size)) throw std::bad_alloc();
  return Next(next_new_array, "_Znam")(size);
}
void* operator new(size_t size, const std::nothrow_t& tag) noexcept {
  if (Refuse(size)) return nullptr;
  return Next(next_new_null, "_ZnwmRKSt9nothrow_t")(size, tag);
}
void* operator new[](size_t size, const std::nothrow_t& tag) noexcept {
  if (Refuse(size)) return nullptr;
  return Next(next_new_array_null, "_ZnamRKSt9nothrow_t")(size, tag);
}
