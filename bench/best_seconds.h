// The time of a call too short for the clock.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <limits>

namespace mneme::bench {

// The best of passes over one function. A pass repeats the call for about a fifth of a millisecond.
class BestPass {
 public:
  template <typename Fn>
  void Run(const Fn& fn) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    for (int64_t i = 0; i < calls_; ++i) fn();
    const double each =
        std::chrono::duration<double>(Clock::now() - start).count() / static_cast<double>(calls_);
    seconds_ = std::min(seconds_, each);
    calls_ = std::clamp<int64_t>(static_cast<int64_t>(2e-4 / each), 1, 100'000);
  }
  double seconds() const { return seconds_; }  // of one call

 private:
  int64_t calls_ = 1;
  double seconds_ = std::numeric_limits<double>::infinity();
};

// Best seconds of one call of each function, from passes that last `budget` a function; at least
// three. The functions take turns, so that a neighbour on the machine slows all or none.
template <typename... Fns>
std::array<double, sizeof...(Fns)> BestSecondsOfEach(double budget, const Fns&... fns) {
  using Clock = std::chrono::steady_clock;
  constexpr size_t kFunctions = sizeof...(Fns);
  std::array<BestPass, kFunctions> passes;
  const auto end = Clock::now() + std::chrono::duration<double>(budget * kFunctions);
  for (int pass = 0; pass < 3 || Clock::now() < end; ++pass) {
    size_t i = 0;
    (passes[i++].Run(fns), ...);
  }
  std::array<double, kFunctions> best;
  std::ranges::transform(passes, best.begin(), &BestPass::seconds);
  return best;
}

template <typename Fn>
double BestSeconds(double budget, const Fn& fn) {
  return BestSecondsOfEach(budget, fn)[0];
}

}  // namespace mneme::bench
