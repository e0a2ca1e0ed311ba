// The time of a call too short for the clock.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>

namespace mneme::bench {

// Best seconds of one call of fn, from passes that last `budget` together; at least three. A pass
// repeats the call for about a fifth of a millisecond.
template <typename Fn>
double BestSeconds(double budget, const Fn& fn) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  int64_t calls = 1;
  double best = std::numeric_limits<double>::infinity();
  const auto begin = Clock::now();
  for (int pass = 0; pass < 3 || since(begin) < budget; ++pass) {
    const auto start = Clock::now();
    for (int64_t i = 0; i < calls; ++i) fn();
    const double each = since(start) / static_cast<double>(calls);
    best = std::min(best, each);
    calls = std::clamp<int64_t>(static_cast<int64_t>(2e-4 / each), 1, 100'000);
  }
  return best;
}

}  // namespace mneme::bench
