#include "engine/core/aligned_buffer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <utility>

namespace mneme::engine {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// On both sides of where the kernel takes over from the heap.
constexpr size_t kSizes[] = {0, 1, 63, 64, 65, 4096, kMiB - 1, kMiB, kMiB + 1, 3 * kMiB};

TEST(AlignedBufferTest, IsAlignedAndZeroedAlsoWhereBytesWereBefore) {
  for (const size_t size : kSizes) {
    for (int again = 0; again < 3; ++again) {
      AlignedBuffer buffer(size);
      ASSERT_NE(buffer.data(), nullptr);
      EXPECT_EQ(buffer.size(), size);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % AlignedBuffer::kAlignment, 0u) << size;
      EXPECT_TRUE(std::all_of(buffer.data(), buffer.data() + size, [](std::byte b) {
        return b == std::byte{0};
      })) << size;
      std::memset(buffer.data(), 0x5a, size);
    }
  }
}

TEST(AlignedBufferTest, MovesBetweenSizes) {
  for (const size_t from : kSizes) {
    for (const size_t to : kSizes) {
      AlignedBuffer source(from), target(to);
      std::memset(source.data(), 1, from);
      const std::byte* bytes = source.data();
      target = std::move(source);
      EXPECT_EQ(target.data(), bytes);
      EXPECT_EQ(target.size(), from);
      AlignedBuffer made(std::move(target));
      EXPECT_EQ(made.data(), bytes);
      if (from > 0) {
        EXPECT_EQ(made.data()[from - 1], std::byte{1});
      }
    }
  }
}

#if !defined(MNEME_RED_ZONES) && defined(__linux__) && !defined(__SANITIZE_THREAD__)
int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

TEST(AlignedBufferTest, OccupiesOnlyWhatWasWritten) {
  const int64_t before = ResidentBytes();
  AlignedBuffer buffer(256 * kMiB);
  std::memset(buffer.data() + 100 * kMiB, 1, kMiB);
  const int64_t grown = ResidentBytes() - before;
  EXPECT_GE(grown, static_cast<int64_t>(kMiB));
  EXPECT_LT(grown, static_cast<int64_t>(16 * kMiB));
}
#endif

}  // namespace
}  // namespace mneme::engine
