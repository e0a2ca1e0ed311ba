// What the emulator has counted since it was loaded, of all devices: for tests that hold launchers
// to a cost.
#pragma once

#include <cstdint>

struct CuemuCounts {
  int64_t launches = 0;  // kernels that were accepted
  int64_t copies = 0;    // of any direction, however short
  int64_t copied_bytes = 0;
  // With CUEMU_TOUCHED=1, else 0: pages of kCuemuPage bytes of device memory that each launch read
  // before it wrote them, and that it wrote. A launch counts when it has run.
  int64_t pages_read = 0;
  int64_t pages_written = 0;
};
inline constexpr int64_t kCuemuPage = 4096;

// Exported by whatever the emulator is linked into, so that a test finds it by dlsym.
extern "C" __attribute__((visibility("default"))) const CuemuCounts* cuemu_counts();
