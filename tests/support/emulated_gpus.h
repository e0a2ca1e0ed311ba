// The emulated GPUs of backend cuda-emu, for tests of what becomes of a server or an engine when
// one of them fails: how many there are, and faults ordered while a program runs
// (tests/support/cuemu/README.md).
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace mneme::test {

// Made before the backend is first used, in this process or one that this process starts: each
// reads the environment once.
class EmulatedGpus {
 public:
  // Orders are written into `folder`.
  EmulatedGpus(int count, const std::filesystem::path& folder) : order_(folder / "fault") {
    setenv("CUEMU_DEVICES", std::to_string(count).c_str(), 1);
    setenv("CUEMU_FAULT", order_.c_str(), 1);
  }

  // "launch 3 1": the third launch on device 1 from now on fails for good; also "copy", and
  // "malloc", which finds no memory this one time.
  void Order(const std::string& fault) {
    const std::filesystem::path draft = order_.string() + ".draft";
    std::ofstream(draft) << fault;
    std::filesystem::rename(draft, order_);  // whole, or not there
  }
  // Whether the last order was read; waits for it.
  bool Taken() const {
    for (int i = 0; i < 4000 && std::filesystem::exists(order_); ++i) {
      absl::SleepFor(absl::Milliseconds(5));
    }
    return !std::filesystem::exists(order_);
  }

 private:
  const std::filesystem::path order_;
};

}  // namespace mneme::test
