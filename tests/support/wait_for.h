// For what happens on another thread or in another process.
#pragma once

#include <chrono>
#include <thread>

namespace mneme::test {

// True as soon as `condition()` is, which is asked once a millisecond; false after 30 seconds.
template <typename Condition>
bool WaitFor(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace mneme::test
