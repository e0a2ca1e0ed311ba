// An architecture says which op meets which rows in which order. What it does to elements itself no
// other device could do, so what runs in a pass has no loop over elements, no copy and no threads
// of its own. Files that read a model at load time are free to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <vector>

namespace mneme {
namespace {

namespace fs = std::filesystem;

// Part of the name of a file that only loads.
const char* const kLoading[] = {"weights",   "weight_reader", "layout",     "format",
                                "config",    "_options",      "name_rules", "translated_",
                                "registry.", "rope_scaling"};

const std::regex& HostWork() {
  static const std::regex pattern(
      // Bytes and ranges at once.
      R"(\b(memcpy|memmove|memset)\b|std::(ranges::)?(fill|copy|transform|accumulate|generate)(_n)?\b)"
      // Threads.
      R"(|\bpool\(\)|\bThreadPool\b|std::j?thread\b)"
      // An element that a loop's index chooses: read or written.
      R"(|\b\w+\[[a-z]( \* \w+)?( \+ [a-z])?\]\s*([-+*/]?=[^=]|[-+*/]\s))");
  return pattern;
}

bool Loads(const fs::path& path) {
  const std::string name = path.filename().string();
  return std::any_of(std::begin(kLoading), std::end(kLoading),
                     [&](const char* part) { return name.find(part) != std::string::npos; });
}

TEST(HostWorkTest, ArchitecturesTouchNoElements) {
  std::vector<std::string> found;
  int files = 0;
  for (const auto& entry :
       fs::recursive_directory_iterator(fs::path(MNEME_SOURCE_DIR) / "engine/arch")) {
    const std::string extension = entry.path().extension().string();
    if ((extension != ".cc" && extension != ".h") || Loads(entry.path())) continue;
    ++files;
    std::ifstream file(entry.path());
    std::string line;
    for (int number = 1; std::getline(file, line); ++number) {
      const std::string code = line.substr(0, line.find("//"));
      if (std::regex_search(code, HostWork())) {
        found.push_back(entry.path().string() + ":" + std::to_string(number) + ": " + line);
      }
    }
  }
  EXPECT_GT(files, 20);  // the folder has been found
  EXPECT_THAT(found, testing::IsEmpty()) << "make it an op of engine/kernels";
}

TEST(HostWorkTest, ThePatternFindsWhatItShould) {
  for (const char* line :
       {"std::memcpy(a, b, n);", "std::fill_n(x, n, 0.0f);", "std::ranges::copy(a, b);",
        "exec.pool().Run(n, work);", "for (i = 0; i < n; ++i) y[i] = x[i];",
        "for (...) y[i] += bias[i];", "y[t * n + i] = 0;", "sum += x[i] * w[i];",
        "normed[i] = x[i] + y[i];"}) {
    EXPECT_TRUE(std::regex_search(line, HostWork())) << line;
  }
  for (const char* line : {"args.runs[0] = {k, v, n};", "done[s] == count", "layers_[i].norm",
                           "exec.kernels().add(exec, x, y, n);"}) {
    EXPECT_FALSE(std::regex_search(line, HostWork())) << line;
  }
}

}  // namespace
}  // namespace mneme
