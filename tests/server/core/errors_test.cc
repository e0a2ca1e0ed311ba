// The reasons of errors.h, their codes, and what docs/errors.md says of them.
#include "server/core/errors.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <utility>

namespace mneme::server {
namespace {

std::string ReadSource(const std::string& path) {
  std::ifstream file(std::string(MNEME_SOURCE_DIR) + "/" + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// As declared, whether or not kReasonCodes has it.
std::set<std::string> DeclaredReasons() {
  static const std::regex kDeclaration("inline constexpr char k\\w+\\[\\] = \"([A-Z_]+)\";");
  const std::string text = ReadSource("server/core/errors.h");
  std::set<std::string> reasons;
  for (std::sregex_iterator it(text.begin(), text.end(), kDeclaration), end; it != end; ++it) {
    reasons.insert((*it)[1]);
  }
  return reasons;
}

TEST(ErrorsTest, EveryReasonHasACode) {
  std::set<std::string> with_code;
  std::set<std::pair<std::string, absl::StatusCode>> seen;
  for (const ReasonCode& known : kReasonCodes) {
    const std::string reason(known.reason);
    EXPECT_TRUE(seen.emplace(reason, known.code).second) << reason << " twice";
    EXPECT_NE(known.code, absl::StatusCode::kOk) << reason;
    with_code.insert(reason);
  }
  EXPECT_EQ(with_code, DeclaredReasons());
}

TEST(ErrorsTest, TheDocumentHasCauseAndRemedyOfEachReason) {
  struct Row {
    std::string cause, remedy;
  };
  static const std::regex kRow("\n\\| `([A-Z_]+)` \\| ([A-Z_]+) \\| ([^|\n]*) \\| ([^|\n]*) \\|");
  const std::string text = ReadSource("docs/errors.md");
  std::map<std::pair<std::string, std::string>, Row> rows;  // by reason and code
  // A row's end is the next one's beginning.
  auto begin = text.cbegin();
  for (std::smatch row; std::regex_search(begin, text.cend(), row, kRow); begin = row[0].second) {
    EXPECT_TRUE(rows.emplace(std::pair(row[1], row[2]), Row{row[3], row[4]}).second)
        << row[1] << " twice";
  }
  for (const ReasonCode& known : kReasonCodes) {
    const std::pair key(std::string(known.reason), absl::StatusCodeToString(known.code));
    ASSERT_TRUE(rows.contains(key)) << "docs/errors.md lacks " << key.first << " " << key.second;
    EXPECT_GT(rows[key].cause.size(), 15u) << key.first;
    EXPECT_GT(rows[key].remedy.size(), 10u) << key.first;
    rows.erase(key);
  }
  for (const auto& [key, row] : rows) {
    ADD_FAILURE() << key.first << " " << key.second << " is no reason any more";
  }
}

}  // namespace
}  // namespace mneme::server
