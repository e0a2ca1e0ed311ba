// The Dockerfile, read: what an orchestrator relies on. Its health check is run against a server.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/config/config_loader.h"
#include "tests/support/server_process.h"

namespace mneme::test {
namespace {

namespace fs = std::filesystem;

struct Instruction {
  std::string name, text;
};

// Of the last stage, which is the image; comments left out, continued lines joined.
std::vector<Instruction> ReadImage() {
  std::istringstream file(ReadFile(MNEME_SOURCE_DIR "/Dockerfile"));
  std::vector<Instruction> image;
  std::string joined;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line.starts_with("#")) continue;
    joined += line;
    if (joined.ends_with("\\")) {
      joined.back() = ' ';
      continue;
    }
    const size_t space = joined.find(' ');
    const std::string name = joined.substr(0, space);
    if (name == "FROM") image.clear();
    image.push_back({name, joined.substr(space + 1)});
    joined.clear();
  }
  return image;
}

std::vector<std::string> TextsOf(const std::string& name) {
  std::vector<std::string> texts;
  for (const Instruction& instruction : ReadImage()) {
    if (instruction.name == name) texts.push_back(instruction.text);
  }
  return texts;
}

std::vector<std::string> Environment() {
  std::vector<std::string> variables;
  for (const std::string& text : TextsOf("ENV")) {
    for (absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
      variables.emplace_back(word);
    }
  }
  return variables;
}

TEST(ImageTest, RunsAsANumberedUserWithoutRights) {
  const auto users = TextsOf("USER");
  ASSERT_EQ(users.size(), 1u);
  std::smatch ids;
  ASSERT_TRUE(std::regex_match(users[0], ids, std::regex("(\\d+):(\\d+)"))) << users[0];
  EXPECT_GT(std::stoi(ids[1]), 999);
  const std::string uid = ids[1];
  const auto runs = TextsOf("RUN");
  EXPECT_TRUE(std::any_of(runs.begin(), runs.end(),
                          [&](const std::string& run) {
                            return run.find("useradd") != run.npos &&
                                   run.find("--uid " + uid + " ") != run.npos;
                          }))
      << "nobody makes user " << uid;
}

TEST(ImageTest, ItsVariablesAreSettings) {
  auto loaded = server::LoadConfig({"--model=m=m.gguf"}, Environment());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(TextsOf("VOLUME"), std::vector<std::string>{loaded->config.store.path});
  const auto port = [](const std::string& address) {
    return address.substr(address.find(':') + 1);
  };
  const server::Config::Listen& listen = loaded->config.listen;
  EXPECT_EQ(TextsOf("EXPOSE"), std::vector<std::string>{absl::StrCat(
                                   port(listen.address), " ", port(listen.metrics_address))});
}

TEST(ImageTest, SaysWhatItIs) {
  std::string labels;
  for (const std::string& text : TextsOf("LABEL")) labels += text;
  for (const char* key : {"title", "description", "version", "revision", "licenses"}) {
    EXPECT_TRUE(std::regex_search(
        labels, std::regex(absl::StrCat("org\\.opencontainers\\.image\\.", key, "=\"[^\"]+\""))))
        << key;
  }
  const auto arguments = TextsOf("ARG");
  EXPECT_NE(std::find(arguments.begin(), arguments.end(), "VERSION=" MNEME_VERSION),
            arguments.end())
      << "the version is " MNEME_VERSION;
}

TEST(ImageTest, CopiesAndRunsWhatIsThere) {
  const std::string dockerfile = ReadFile(MNEME_SOURCE_DIR "/Dockerfile");
  static const std::regex kScript("(tests/)?deploy/\\w+\\.\\w+");
  int found = 0;
  for (std::sregex_iterator it(dockerfile.begin(), dockerfile.end(), kScript), end; it != end;
       ++it) {
    ++found;
    EXPECT_TRUE(fs::exists(fs::path(MNEME_SOURCE_DIR) / it->str())) << it->str();
  }
  EXPECT_GT(found, 2);
}

TEST(ImageTest, TheContextLeavesOutHistoryAndBuilds) {
  const std::vector<std::string> ignored =
      absl::StrSplit(ReadFile(MNEME_SOURCE_DIR "/.dockerignore"), '\n');
  for (const char* path : {".git", "build*/", "data/", "models/", ".venv"}) {
    EXPECT_NE(std::find(ignored.begin(), ignored.end(), path), ignored.end()) << path;
  }
}

TEST(ImageTest, ItsHealthCheckTellsAServerThatServes) {
  const auto checks = TextsOf("HEALTHCHECK");
  ASSERT_EQ(checks.size(), 1u);
  const std::string command = checks[0].substr(checks[0].find("CMD ") + 4);
  TemporaryFolder folder;
  const std::string programs = fs::path(MNEME_CLI_BINARY).parent_path();
  const auto check = [&](const std::string& listen_address) {
    return ChildProcess::Run({.command = {"/bin/sh", "-c", command},
                              .environment = {{"PATH", programs + ":/bin:/usr/bin"},
                                              {"MNEME_LISTEN_ADDRESS", listen_address}},
                              .folder = folder.path(),
                              .name = "check"});
  };
  auto server = ServerProcess::Start({.binary = MNEME_SERVER_BINARY,
                                      .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
                                      .folder = folder.path(),
                                      .flags = {"--drain.pre_stop_delay", "60s"}});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string& address = (*server)->address();
  const std::string anywhere = "0.0.0.0" + address.substr(address.rfind(':'));
  auto result = check(anywhere);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "SERVING\n");

  (*server)->Signal(SIGTERM);
  for (int i = 0; i < 200 && result.code == 0; ++i) result = check(anywhere);
  EXPECT_EQ(result.code, 5) << result.err;
  EXPECT_EQ(result.out, "NOT_SERVING\n");

  (*server)->Kill();
  EXPECT_EQ(check(anywhere).code, 5);
}

}  // namespace
}  // namespace mneme::test
