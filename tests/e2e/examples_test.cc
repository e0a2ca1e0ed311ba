// examples/: each is built as its README says and run against a server that is killed and started
// again in the middle.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "tests/support/pty_process.h"
#include "tests/support/server_process.h"

namespace mneme::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class ExamplesTest : public testing::Test {
 protected:
  void Run(std::vector<std::string> command,
           std::vector<std::pair<std::string, std::string>> environment = {}) {
    const ChildProcess::Result result = ChildProcess::Run({.command = command,
                                                           .environment = std::move(environment),
                                                           .folder = folder_.path(),
                                                           .name = "step"},
                                                          absl::Seconds(500));
    ASSERT_EQ(result.code, 0) << command[0] << ": " << result.out << result.err;
  }
  // Runs protoc with these flags over the protos.
  void Protoc(std::vector<std::string> flags) {
    std::vector<std::string> command = {"/usr/bin/protoc", "-I", MNEME_SOURCE_DIR "/proto"};
    command.insert(command.end(), flags.begin(), flags.end());
    for (const auto& entry : fs::directory_iterator(MNEME_SOURCE_DIR "/proto/mneme/v1")) {
      command.push_back(entry.path());
    }
    ASSERT_NO_FATAL_FAILURE(Run(std::move(command)));
  }
  fs::path Folder(const std::string& name) {
    const fs::path path = folder_.path() / name;
    fs::create_directories(path);
    return path;
  }

  // `command` gets the server's address behind it.
  void Converse(std::vector<std::string> command,
                const std::vector<std::pair<std::string, std::string>>& environment = {}) {
    ServerProcess::Options options{.binary = MNEME_SERVER_BINARY,
                                   .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
                                   .folder = Folder("server")};
    auto server = ServerProcess::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    options.address = (*server)->address();
    command.push_back(options.address);
    auto program = PtyProcess::Start(command, environment);
    ASSERT_TRUE(program.ok()) << program.status();
    PtyProcess& terminal = **program;
    ASSERT_TRUE(terminal.Expect("[version 1, ")) << terminal.screen();
    ASSERT_TRUE(terminal.Expect("Press Enter.")) << terminal.screen();
    (*server)->Kill();
    server = ServerProcess::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    terminal.Type("\n");
    EXPECT_TRUE(terminal.Expect("[version 2, read again: 0 tokens]")) << terminal.screen();
    EXPECT_TRUE(terminal.Expect("answer 0:")) << terminal.screen();
    EXPECT_TRUE(terminal.Expect("answer 1:")) << terminal.screen();
    EXPECT_TRUE(terminal.Expect("rewound to ")) << terminal.screen();
    EXPECT_TRUE(terminal.Expect("ended by CANCELLED")) << terminal.screen();
    EXPECT_TRUE(terminal.Expect("still at ")) << terminal.screen();
    EXPECT_EQ(terminal.Wait(), 0) << terminal.screen();
    // Rewound to where the discarded turn left it.
    const std::string& screen = terminal.screen();
    const auto number = [&](const std::string& after) {
      return std::stoll(screen.substr(screen.find(after) + after.size()));
    };
    EXPECT_EQ(number("rewound to "), number("still at ")) << screen;
    EXPECT_THAT((*server)->Log(), testing::Not(HasSubstr("INTERNAL")));
  }

  TemporaryFolder folder_;
};

TEST_F(ExamplesTest, Python) {
  const std::string stubs = Folder("stubs");
  ASSERT_NO_FATAL_FAILURE(Protoc({"--python_out=" + stubs, "--grpc_python_out=" + stubs,
                                  "--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin"}));
  Converse({"/usr/bin/python3", MNEME_SOURCE_DIR "/examples/python/conversation.py"},
           {{"PYTHONPATH", stubs}});
}

TEST_F(ExamplesTest, Cpp) {
  const std::string prefix = Folder("prefix"), build = Folder("build");
  ASSERT_NO_FATAL_FAILURE(Run({MNEME_CMAKE, "--install", MNEME_BINARY_DIR, "--prefix", prefix}));
  const std::string flags = *MNEME_SANITIZE ? "-fsanitize=" MNEME_SANITIZE : "";
  ASSERT_NO_FATAL_FAILURE(Run({MNEME_CMAKE, "-S", MNEME_SOURCE_DIR "/examples/cpp", "-B", build,
                               "-G", "Ninja", "-DCMAKE_PREFIX_PATH=" + prefix,
                               "-DCMAKE_CXX_COMPILER=" MNEME_CXX, "-DCMAKE_CXX_FLAGS=" + flags}));
  ASSERT_NO_FATAL_FAILURE(Run({MNEME_CMAKE, "--build", build}));
  // It has no part of the tests that shows ThreadSanitizer gRPC's order (tsan_grpc.cc).
  Converse({build + "/conversation"}, {{"TSAN_OPTIONS", "report_bugs=0"}});
}

TEST_F(ExamplesTest, Go) {
  const std::string path = Folder("go"), source = Folder("go/src");
  ASSERT_NO_FATAL_FAILURE(Protoc({"--go_out=" + source, "--go-grpc_out=" + source}));
  ASSERT_NO_FATAL_FAILURE(Run({"/usr/bin/go", "build", "-o", path + "/conversation",
                               MNEME_SOURCE_DIR "/examples/go/conversation.go"},
                              {{"GO111MODULE", "off"},
                               {"GOPATH", path + ":/usr/share/gocode"},
                               {"GOCACHE", Folder("cache")}}));
  Converse({path + "/conversation"});
}

}  // namespace
}  // namespace mneme::test
