// `mneme export` and `mneme import`: a session moves between two servers, each with a store of its
// own, and goes on as if it had stayed.
#include "tests/e2e/cli_test_base.h"

namespace mneme::test {
namespace {

class CliExportTest : public CliE2eTest {
 protected:
  static void SetUpTestSuite() {
    CliE2eTest::SetUpTestSuite();
    const std::filesystem::path folder = folder_->path() / "elsewhere";
    std::filesystem::create_directory(folder);
    auto server = ServerProcess::Start({.binary = MNEME_SERVER_BINARY,
                                        .model = absl::StrCat("other-name=", MNEME_TINY_MODEL),
                                        .folder = folder});
    ASSERT_TRUE(server.ok()) << server.status();
    elsewhere_ = *std::move(server);
  }
  static void TearDownTestSuite() {
    elsewhere_.reset();
    CliE2eTest::TearDownTestSuite();
  }
  // On the other server.
  static std::vector<std::string> There(std::vector<std::string> args) {
    args.insert(args.end(), {"--server", elsewhere_->address()});
    return args;
  }
  std::vector<int> Continue(const std::vector<std::string>& where) {
    std::vector<std::string> args = {"generate",      "--session", "moved",        "-n",       "16",
                                     "--temperature", "0",         "--ignore-eos", " and then"};
    args.insert(args.end(), where.begin(), where.end());
    return TokensOf(OutLines(args));
  }

  static inline std::unique_ptr<ServerProcess> elsewhere_;
};

TEST_F(CliExportTest, ASessionMovesToAnotherServer) {
  OutJson({"sessions", "create", "moved"});
  OutLines({"generate", "--session", "moved", "-n", "24", "--ignore-eos", "Once upon a time"});
  const std::string file = folder_->path() / "moved.mneme";
  const Json exported = OutJson({"export", "moved", file});
  EXPECT_EQ(exported["version"], 1);
  EXPECT_EQ(exported["file_bytes"], std::filesystem::file_size(file));
  EXPECT_EQ(Error({"export", "moved", file}, 1)["code"], "LOCAL");
  const std::string pipe = Out({"export", "moved", "-"});
  EXPECT_EQ(pipe.size(), std::filesystem::file_size(file));
  EXPECT_THAT(Run({"export", "moved", file, "--force", "--compress"}).out,
              ::testing::HasSubstr("Exported version 1"));
  EXPECT_LT(std::filesystem::file_size(file), pipe.size());

  const Json imported = OutJson(There({"import", file, "--name", "moved", "--label", "k=v"}));
  EXPECT_EQ(imported["session"]["name"], Name("moved"));
  EXPECT_EQ(imported["session"]["model"], "models/other-name");
  EXPECT_EQ(imported["session"]["labels"]["k"], "v");
  EXPECT_EQ(imported["same_numerics"], true);
  EXPECT_EQ(Out(There({"sessions", "show", "moved", "--json"})),
            Out({"sessions", "show", "moved", "--json"}));
  EXPECT_EQ(Out(There({"import", "-", "--name", "piped", "-o", "name"}), pipe),
            Name("piped") + "\n");
  const std::vector<int> tokens = Continue({});
  EXPECT_EQ(tokens.size(), 16u);
  EXPECT_EQ(Continue({"--server", elsewhere_->address()}), tokens);

  EXPECT_EQ(Error(There({"import", file, "--name", "moved"}), 4)["reason"], "SESSION_EXISTS");
  EXPECT_EQ(Error(There({"import", "-"}), 6, pipe.substr(0, 5000))["reason"], "STATE_CORRUPT");
  EXPECT_EQ(Error(There({"import", "-"}), 6, "not a session")["reason"], "STATE_CORRUPT");
  EXPECT_THAT(Out(There({"import", "-", "--validate-only"}), pipe),
              ::testing::HasSubstr("Could be imported"));
  EXPECT_EQ(OutJson(There({"sessions", "list"}))["sessions"].size(), 2u);
}

// Nothing half-written bears the file's name.
TEST_F(CliExportTest, AFailedExportLeavesNoFile) {
  const std::string file = folder_->path() / "nobody.mneme";
  EXPECT_EQ(Error({"export", "nobody", file}, 3)["reason"], "SESSION_NOT_FOUND");
  EXPECT_FALSE(std::filesystem::exists(file));
  EXPECT_FALSE(std::filesystem::exists(file + ".part"));
}

}  // namespace
}  // namespace mneme::test
