// deploy/mneme.service: its settings exist, and it has the time that a drain takes.
#include <gtest/gtest.h>

#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "server/config/config_loader.h"
#include "tests/support/child_process.h"

namespace mneme::test {
namespace {

std::multimap<std::string, std::string> ReadUnit() {
  std::istringstream text(ReadFile(MNEME_SOURCE_DIR "/deploy/mneme.service"));
  std::multimap<std::string, std::string> settings;
  for (std::string line; std::getline(text, line);) {
    const size_t equals = line.find('=');
    if (line.starts_with("#") || line.starts_with("[") || equals == line.npos) continue;
    settings.emplace(line.substr(0, equals), line.substr(equals + 1));
  }
  return settings;
}

std::string One(const std::multimap<std::string, std::string>& unit, const std::string& key) {
  EXPECT_EQ(unit.count(key), 1u) << key;
  return unit.count(key) == 0 ? "" : unit.find(key)->second;
}

TEST(ServiceTest, KeepsSessionsInTheStateDirectory) {
  const auto unit = ReadUnit();
  std::vector<std::string> environment;
  for (auto [it, end] = unit.equal_range("Environment"); it != end; ++it) {
    environment.push_back(absl::StrReplaceAll(it->second, {{"%S", "/var/lib"}}));
  }
  auto loaded = server::LoadConfig({"--model=m=m.gguf"}, environment);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.store.path, "/var/lib/" + One(unit, "StateDirectory"));
}

TEST(ServiceTest, WaitsForTheDrain) {
  const server::Config defaults;
  const int64_t drain_ms = defaults.drain.pre_stop_delay_ms + defaults.drain.timeout_ms;
  const int64_t stop_ms = 1000 * std::stoi(One(ReadUnit(), "TimeoutStopSec"));
  EXPECT_GE(stop_ms, drain_ms + 3000);
  EXPECT_GE(30'000, drain_ms + 3000) << "Kubernetes waits no longer by itself";
}

TEST(ServiceTest, DoesNotRestartWhatCannotStart) {
  const std::string codes = " " + One(ReadUnit(), "RestartPreventExitStatus") + " ";
  for (const int code : {server::kExitUsage, server::kExitModel}) {
    EXPECT_NE(codes.find(" " + std::to_string(code) + " "), std::string::npos) << code;
  }
}

}  // namespace
}  // namespace mneme::test
