// deploy/collect_licences.sh finds every package that these programs were made of, by itself.
#include <gtest/gtest.h>

#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/child_process.h"

namespace mneme::test {
namespace {

// The words of install_packages.sh's runtime=( ... ).
std::vector<std::string> RuntimePackages() {
  const std::string script = ReadFile(MNEME_SOURCE_DIR "/deploy/install_packages.sh");
  const size_t begin = script.find("\nruntime=(") + std::string("\nruntime=(").size();
  std::istringstream words(script.substr(begin, script.find(')', begin) - begin));
  std::vector<std::string> packages;
  for (std::string package; words >> package;) packages.push_back(package);
  return packages;
}

TEST(LicencesTest, OfAllThatIsCompiledOrLinkedIn) {
  TemporaryFolder folder;
  const std::filesystem::path out = folder.path() / "third_party";
  const auto result =
      ChildProcess::Run({.command = {MNEME_SOURCE_DIR "/deploy/collect_licences.sh", out,
                                     MNEME_BINARY_DIR, MNEME_SERVER_BINARY, MNEME_CLI_BINARY},
                         .folder = folder.path()});
  ASSERT_EQ(result.code, 0) << result.out << result.err;

  std::vector<std::string> expected = RuntimePackages();
  ASSERT_GT(expected.size(), 10u);
  // Headers alone, and a static library.
  for (const char* compiled_in : {"libcli11-dev", "nlohmann-json3-dev", "libsentencepiece-dev",
                                  "libabsl-dev", "libstdc++6", "libc6"}) {
    expected.push_back(compiled_in);
  }
  const std::string packages = "\n" + ReadFile(out / "packages");
  for (const std::string& package : expected) {
    const std::string text = ReadFile(out / package / "copyright");
    EXPECT_GT(text.size(), 200u) << package;
    EXPECT_NE(text.find("icense"), std::string::npos) << package;
    EXPECT_NE(packages.find("\n" + package + " "), std::string::npos) << package;
  }
}

TEST(LicencesTest, AFolderWithoutABuildIsAnError) {
  TemporaryFolder folder;
  const auto result =
      ChildProcess::Run({.command = {MNEME_SOURCE_DIR "/deploy/collect_licences.sh",
                                     folder.path() / "out", folder.path(), MNEME_CLI_BINARY},
                         .folder = folder.path()});
  EXPECT_NE(result.code, 0) << result.out;
}

}  // namespace
}  // namespace mneme::test
