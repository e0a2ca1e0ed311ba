#include "server/rpc/store_disk_metrics.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>

#include "tests/support/child_process.h"

namespace mneme::server {
namespace {

std::map<std::string, double> Read(const StoreDiskMetrics& metrics) {
  std::map<std::string, double> values;
  for (const prometheus::MetricFamily& family : metrics.Collect()) {
    EXPECT_FALSE(family.help.empty()) << family.name;
    values[family.name] = family.metric.at(0).gauge.value;
  }
  return values;
}

TEST(StoreDiskMetricsTest, CountsTheStoresFilesAndTheDisk) {
  test::TemporaryFolder folder;
  const StoreDiskMetrics metrics(folder.path());
  auto values = Read(metrics);
  EXPECT_EQ(values["mneme_store_size_bytes"], 0);
  EXPECT_GT(values["mneme_store_disk_free_bytes"], 0);
  EXPECT_GE(values["mneme_store_disk_size_bytes"], values["mneme_store_disk_free_bytes"]);

  std::filesystem::create_directories(folder.path() / "inner");
  std::ofstream(folder.path() / "a", std::ios::binary) << std::string(3 << 20, 'x');
  std::ofstream(folder.path() / "inner" / "b", std::ios::binary) << std::string(5 << 20, 'x');
  values = Read(metrics);
  EXPECT_EQ(values["mneme_store_size_bytes"], 8 << 20);
}

TEST(StoreDiskMetricsTest, AFolderThatIsGoneHasNoDisk) {
  const auto values = Read(StoreDiskMetrics("/nonexistent/store"));
  EXPECT_EQ(values.at("mneme_store_size_bytes"), 0);
  EXPECT_FALSE(values.contains("mneme_store_disk_free_bytes"));
}

}  // namespace
}  // namespace mneme::server
