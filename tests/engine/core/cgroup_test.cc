#include "engine/core/cgroup.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

#include "engine/core/thread_pool.h"

namespace mneme::engine {
namespace {

namespace fs = std::filesystem;

// A machine's /proc and /sys in a folder.
class CgroupTest : public testing::Test {
 protected:
  CgroupTest() {
    std::string pattern = testing::TempDir() + "mneme-cgroup-XXXXXX";
    root_ = mkdtemp(pattern.data());
  }
  ~CgroupTest() override { fs::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const fs::path file = root_.string() + path;
    fs::create_directories(file.parent_path());
    std::ofstream(file) << text << "\n";
  }
  CgroupLimits Read() const { return ReadCgroupLimits(root_.string()); }

  fs::path root_;
};

constexpr int64_t kNoMemoryLimit = std::numeric_limits<int64_t>::max();

TEST_F(CgroupTest, NothingThereIsNoLimit) {
  EXPECT_TRUE(std::isinf(Read().processors));
  EXPECT_EQ(Read().memory_bytes, kNoMemoryLimit);
}

// As Docker and Kubernetes set it up: the container's group is all that it sees.
TEST_F(CgroupTest, Version2InAContainer) {
  Write("/proc/self/cgroup", "0::/");
  Write("/proc/self/mountinfo",
        "29 28 0:26 / /proc rw - proc proc rw\n"
        "30 29 0:27 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate");
  Write("/sys/fs/cgroup/cpu.max", "250000 100000");
  Write("/sys/fs/cgroup/memory.max", "1073741824");
  EXPECT_EQ(Read().processors, 2.5);
  EXPECT_EQ(Read().memory_bytes, 1073741824);
}

// A service: the limit of the slice above it holds as well.
TEST_F(CgroupTest, Version2TheTightestOfAllGroupsAbove) {
  Write("/proc/self/cgroup", "0::/system.slice/mneme.service");
  Write("/proc/self/mountinfo", "30 29 0:27 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw");
  Write("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000");
  Write("/sys/fs/cgroup/system.slice/memory.max", "max");
  Write("/sys/fs/cgroup/system.slice/mneme.service/cpu.max", "max 100000");
  Write("/sys/fs/cgroup/system.slice/mneme.service/memory.max", "4096");
  Write("/sys/fs/cgroup/system.slice/other.service/cpu.max", "1000 100000");
  EXPECT_EQ(Read().processors, 1.5);
  EXPECT_EQ(Read().memory_bytes, 4096);
}

TEST_F(CgroupTest, Version1OnTheHost) {
  Write("/proc/self/cgroup", "5:memory:/jobs/a\n4:cpu,cpuacct:/jobs/a\n1:name=systemd:/");
  Write("/proc/self/mountinfo",
        "31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "32 24 0:28 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory");
  Write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1");
  Write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
  Write("/sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us", "400000");
  Write("/sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us", "100000");
  Write("/sys/fs/cgroup/cpu,cpuacct/jobs/a/cpu.cfs_quota_us", "75000");
  Write("/sys/fs/cgroup/cpu,cpuacct/jobs/a/cpu.cfs_period_us", "50000");
  Write("/sys/fs/cgroup/memory/jobs/a/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(Read().processors, 1.5);
  EXPECT_EQ(Read().memory_bytes, 9223372036854771712);
}

// /proc shows the group's path on the host, the mount the group itself.
TEST_F(CgroupTest, Version1InAContainer) {
  Write("/proc/self/cgroup", "5:memory:/docker/1f3a\n4:cpu,cpuacct:/docker/1f3a/inner");
  Write("/proc/self/mountinfo",
        "31 24 0:27 /docker/1f3a /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
        "32 24 0:28 /../.. /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
  Write("/sys/fs/cgroup/cpu/inner/cpu.cfs_quota_us", "200000");
  Write("/sys/fs/cgroup/cpu/inner/cpu.cfs_period_us", "100000");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "65536");
  EXPECT_EQ(Read().processors, 2);
  EXPECT_EQ(Read().memory_bytes, 65536);
}

TEST_F(CgroupTest, AnEmptyListOfGroupsMeansTheMountedOne) {
  Write("/proc/self/cgroup", "");
  Write("/proc/self/mountinfo", "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
  EXPECT_EQ(Read().processors, 1);
}

TEST_F(CgroupTest, NonsenseIsNoLimit) {
  Write("/proc/self/cgroup", "0::/\n\nx\n:::");
  Write("/proc/self/mountinfo", "short - cgroup2\n - \n30 29 0:27 / /c rw - cgroup2 cgroup2 rw");
  Write("/c/cpu.max", "fast 0");
  Write("/c/memory.max", "-3");
  EXPECT_TRUE(std::isinf(Read().processors));
  EXPECT_EQ(Read().memory_bytes, kNoMemoryLimit);
}

TEST(CgroupLimitsTest, ThreadsFitIntoTheQuota) {
  for (const auto& [processors, threads] :
       {std::pair{0.2, 1}, {1.0, 1}, {1.9, 1}, {2.5, 2}, {7.9, 7}, {8.0, 8}, {1e9, 8}}) {
    EXPECT_EQ(CgroupLimits{.processors = processors}.Threads(8), threads) << processors;
  }
  EXPECT_EQ(CgroupLimits().Threads(8), 8);
  EXPECT_EQ(CgroupLimits().Threads(0), 1);
}

TEST(AvailableProcessorsTest, HeedTheAffinityAndTheQuota) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  EXPECT_EQ(AvailableProcessors(), ReadCgroupLimits().Threads(CPU_COUNT(&before)));
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(AvailableProcessors(), 1);
  sched_setaffinity(0, sizeof(before), &before);
}

}  // namespace
}  // namespace mneme::engine
