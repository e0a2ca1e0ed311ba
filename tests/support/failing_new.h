// Memory that runs out on demand: a program that links failing_new.cc has an operator new that
// throws std::bad_alloc for large blocks while a test says so.
#pragma once

#include <cstddef>

namespace mneme::test {

// While it lives, every operator new of `from_bytes` or more throws, on all threads. One at a time.
class FailingNew {
 public:
  explicit FailingNew(size_t from_bytes);
  ~FailingNew();
  FailingNew(const FailingNew&) = delete;
  FailingNew& operator=(const FailingNew&) = delete;
  // Allocations that were refused.
  int refused() const;
};

}  // namespace mneme::test
