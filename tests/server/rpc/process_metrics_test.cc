#include "server/rpc/process_metrics.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace mneme::server {
namespace {

std::map<std::string, double> Read() {
  std::map<std::string, double> values;
  for (const prometheus::MetricFamily& family : ProcessMetrics().Collect()) {
    EXPECT_FALSE(family.help.empty()) << family.name;
    EXPECT_EQ(family.type == prometheus::MetricType::Counter, family.name.ends_with("_total"));
    EXPECT_EQ(family.metric.size(), 1u) << family.name;
    values[family.name] = family.type == prometheus::MetricType::Counter
                              ? family.metric[0].counter.value
                              : family.metric[0].gauge.value;
  }
  return values;
}

TEST(ProcessMetricsTest, AreThoseOfThisProcess) {
  auto values = Read();
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  EXPECT_GT(values["process_start_time_seconds"], now - 3600);
  EXPECT_LT(values["process_start_time_seconds"], now + 60);
  EXPECT_GT(values["process_resident_memory_bytes"], 1e6);
  EXPECT_LT(values["process_resident_memory_bytes"], 1e12);
  EXPECT_GE(values["process_virtual_memory_bytes"], values["process_resident_memory_bytes"]);
  EXPECT_GT(values["process_max_fds"], values["process_open_fds"]);
}

TEST(ProcessMetricsTest, Move) {
  const auto before = Read();
  const int first = open("/dev/null", O_RDONLY);
  const int second = open("/dev/null", O_RDONLY);
  std::vector<char> touched(64 << 20, 1);
  const auto start = std::chrono::steady_clock::now();
  volatile uint64_t work = 0;
  while (std::chrono::steady_clock::now() < start + std::chrono::seconds(1)) work = work + 1;
  const auto after = Read();
  EXPECT_EQ(after.at("process_open_fds"), before.at("process_open_fds") + 2);
  EXPECT_GT(after.at("process_resident_memory_bytes"),
            before.at("process_resident_memory_bytes") + (32 << 20));
  EXPECT_GT(after.at("process_cpu_seconds_total"), before.at("process_cpu_seconds_total"));
  EXPECT_EQ(after.at("process_start_time_seconds"), before.at("process_start_time_seconds"));
  close(first);
  close(second);
}

}  // namespace
}  // namespace mneme::server
