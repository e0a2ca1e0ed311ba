// engine/numerics_hash.cmake: which build a numerics id names.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace mneme::engine {
namespace {

namespace fs = std::filesystem;

class NumericsHashTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* where : {"here", "there"}) fs::create_directories(root_ / where);
  }
  void TearDown() override { fs::remove_all(root_); }
  fs::path Write(const std::string& where, const std::string& name, const std::string& text) {
    const fs::path path = root_ / where / name;
    std::ofstream(path) << text;
    return path;
  }
  std::string Hash(const std::string& where, const std::vector<fs::path>& sources,
                   const std::string& flags) {
    std::string list;
    for (const fs::path& source : sources) absl::StrAppend(&list, source.string(), ";");
    const fs::path output = root_ / "hash.h";
    const std::string command = absl::StrCat(
        "'", MNEME_CMAKE, "' -DOUTPUT='", output.string(), "' '-DFLAGS=", flags, "' -DROOT='",
        (root_ / where).string(), "' '-DSOURCES=", list, "' -P '", MNEME_NUMERICS_HASH_SCRIPT, "'");
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
    std::stringstream text;
    text << std::ifstream(output).rdbuf();
    return text.str();
  }

  const fs::path root_ = fs::path(testing::TempDir()) / absl::StrCat("numerics_hash.", getpid());
};

TEST_F(NumericsHashTest, ChangesWithSourcesNamesAndFlagsAndNothingElse) {
  const fs::path a = Write("here", "a.cc", "one"), b = Write("here", "b.cc", "two");
  const std::string hash = Hash("here", {a, b}, "-O3");
  EXPECT_EQ(hash.size(), std::string("#define MNEME_NUMERICS_HASH \"0123456789ab\"\n").size());
  EXPECT_EQ(Hash("here", {b, a}, "-O3"), hash);  // as a glob finds them
  EXPECT_EQ(Hash("there", {Write("there", "a.cc", "one"), Write("there", "b.cc", "two")}, "-O3"),
            hash);  // wherever it was built
  EXPECT_NE(Hash("here", {a, b}, "-O2"), hash);
  EXPECT_NE(Hash("here", {a}, "-O3"), hash);
  EXPECT_NE(Hash("here", {a, Write("here", "c.cc", "two")}, "-O3"), hash);
  Write("here", "b.cc", "three");
  EXPECT_NE(Hash("here", {a, b}, "-O3"), hash);
}

}  // namespace
}  // namespace mneme::engine
