// `cmake --install` into an empty folder: everything is there, the programs run from there with the
// libraries from there, and another project builds against the client library by
// find_package(mneme).
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "tests/support/server_process.h"

namespace mneme::test {
namespace {

namespace fs = std::filesystem;

class InstallTest : public ::testing::Test {
 protected:
  ChildProcess::Result Run(std::vector<std::string> command, const std::string& name,
                           std::vector<std::pair<std::string, std::string>> environment = {}) {
    return ChildProcess::Run({.command = std::move(command),
                              .environment = std::move(environment),
                              .folder = folder_.path(),
                              .name = name},
                             absl::Seconds(400));
  }
  fs::path Prefix() const { return folder_.path() / "prefix"; }
  fs::path Libraries() const { return Prefix() / MNEME_INSTALL_LIBDIR; }
  void Install(std::vector<std::string> more = {}) {
    std::vector<std::string> command = {MNEME_CMAKE, "--install", MNEME_BINARY_DIR, "--prefix",
                                        Prefix()};
    command.insert(command.end(), more.begin(), more.end());
    const ChildProcess::Result result = Run(command, "install");
    ASSERT_EQ(result.code, 0) << result.out << result.err;
  }
  absl::StatusOr<std::unique_ptr<ServerProcess>> StartInstalledServer() {
    fs::create_directory(folder_.path() / "server");
    return ServerProcess::Start({.binary = Prefix() / "bin/mneme-server",
                                 .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
                                 .folder = folder_.path() / "server"});
  }
  void ExpectInstalledProgramsWork() {
    auto server = StartInstalledServer();
    ASSERT_TRUE(server.ok()) << server.status();
    // Both find what is private to Mneme below the prefix, not in the build tree.
    const fs::path private_library = fs::canonical(Libraries() / "mneme/libmneme_spm.so");
    const std::string maps = ReadFile(absl::StrCat("/proc/", (*server)->pid(), "/maps"));
    EXPECT_NE(maps.find(private_library.string()), std::string::npos) << maps;
    EXPECT_EQ(maps.find(MNEME_BINARY_DIR), std::string::npos) << maps;
    const ChildProcess::Result models = Run({Prefix() / "bin/mneme", "models", "--json"}, "models",
                                            {{"MNEME_SERVER", (*server)->address()}});
    EXPECT_EQ(models.code, 0) << models.err;
    EXPECT_NE(models.out.find("models/tiny"), std::string::npos) << models.out;
    const ChildProcess::Result chat =
        Run({Prefix() / "bin/mneme", "generate", "The", "-n", "3", "--ignore-eos", "--json"},
            "generate", {{"MNEME_SERVER", (*server)->address()}});
    EXPECT_EQ(chat.code, 0) << chat.err;
    EXPECT_NE(chat.out.find("MAX_TOKENS"), std::string::npos) << chat.out;
  }
  // No program of ours looks for libraries where it was built.
  void ExpectNoPathOfTheBuild(const fs::path& program) {
    const std::string bytes = ReadFile(program);
    ASSERT_FALSE(bytes.empty()) << program;
    const ChildProcess::Result dynamic = Run({"/usr/bin/readelf", "-d", program}, "readelf");
    ASSERT_EQ(dynamic.code, 0) << dynamic.err;
    EXPECT_EQ(dynamic.out.find(MNEME_BINARY_DIR), std::string::npos) << dynamic.out;
  }

  TemporaryFolder folder_;
};

TEST_F(InstallTest, TheRuntimeComponentIsAllThatAnImageNeeds) {
  Install({"--component", "runtime", "--strip"});
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(Prefix())) {
    if (entry.is_regular_file()) files.push_back(fs::relative(entry.path(), Prefix()));
  }
  std::sort(files.begin(), files.end());
  EXPECT_EQ(files, (std::vector<std::string>{
                       "bin/mneme", "bin/mneme-server",
                       absl::StrCat(MNEME_INSTALL_LIBDIR, "/mneme/libmneme_spm.so"),
                       "share/doc/mneme/LICENSE", "share/mneme/install_packages.sh"}));
  for (const char* program : {"bin/mneme", "bin/mneme-server"}) {
    ExpectNoPathOfTheBuild(Prefix() / program);
  }
  ExpectInstalledProgramsWork();
}

TEST_F(InstallTest, AProgramBuildsAgainstTheInstalledClientLibrary) {
  Install();
  for (const char* file :
       {"include/mneme/client/client.h", "include/mneme/mneme/v1/sessions.grpc.pb.h",
        "include/mneme/google/rpc/status.pb.h", "share/mneme/proto/mneme/v1/generation.proto",
        "share/mneme/proto/google/rpc/error_details.proto"}) {
    EXPECT_TRUE(fs::is_regular_file(Prefix() / file)) << file;
  }
  for (const auto& entry : fs::recursive_directory_iterator(Libraries() / "cmake")) {
    if (!entry.is_regular_file()) continue;
    EXPECT_EQ(ReadFile(entry.path()).find(MNEME_BINARY_DIR), std::string::npos) << entry.path();
  }
  const fs::path project = folder_.path() / "project";
  fs::create_directory(project);
  std::ofstream(project / "CMakeLists.txt") << R"(cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
find_package(mneme 0.1 REQUIRED)
add_executable(consumer main.cc)
target_link_libraries(consumer PRIVATE mneme::client)
)";
  std::ofstream(project / "main.cc") << R"(#include <iostream>
#include "client/client.h"
int main(int argc, char** argv) {
  auto client = mneme::client::Client::Connect({.server = argv[1]});
  if (!client.ok()) return 1;
  auto model = client->GetModel("tiny");
  if (!model.ok()) return 2;
  auto missing = client->GetSession("nobody");
  if (mneme::client::ErrorOf(missing.status()).reason != "SESSION_NOT_FOUND") return 3;
  std::cout << model->architecture() << "\n";
}
)";
  const std::string flags = *MNEME_SANITIZE ? "-fsanitize=" MNEME_SANITIZE : "";
  const ChildProcess::Result configured =
      Run({MNEME_CMAKE, "-S", project, "-B", project / "build", "-G", "Ninja",
           absl::StrCat("-DCMAKE_PREFIX_PATH=", Prefix().string()),
           absl::StrCat("-DCMAKE_CXX_COMPILER=", MNEME_CXX), "-DCMAKE_BUILD_TYPE=Debug",
           absl::StrCat("-DCMAKE_CXX_FLAGS=", flags)},
          "configure");
  ASSERT_EQ(configured.code, 0) << configured.out << configured.err;
  const ChildProcess::Result built = Run({MNEME_CMAKE, "--build", project / "build"}, "build");
  ASSERT_EQ(built.code, 0) << built.out << built.err;
  auto server = StartInstalledServer();
  ASSERT_TRUE(server.ok()) << server.status();
  // It has no part of the tests that shows ThreadSanitizer gRPC's order (tsan_grpc.cc).
  const ChildProcess::Result result = Run({project / "build/consumer", (*server)->address()},
                                          "consumer", {{"TSAN_OPTIONS", "report_bugs=0"}});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "llama\n");
}

}  // namespace
}  // namespace mneme::test
