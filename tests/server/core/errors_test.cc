// The reasons of errors.h, their codes, and what docs/errors.md says of them.
#include "server/core/errors.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <string>

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

TEST(ErrorsTest, EveryReasonHasOneCode) {
  std::set<std::string> with_code;
  for (const ReasonCode& known : kReasonCodes) {
    EXPECT_TRUE(with_code.insert(std::string(known.reason)).second) << known.reason;
    EXPECT_NE(known.code, absl::StatusCode::kOk) << known.reason;
  }
  EXPECT_EQ(with_code, DeclaredReasons());
}

TEST(ErrorsTest, TheDocumentHasCauseAndRemedyOfEachReason) {
  struct Row {
    std::string code, cause, remedy;
  };
  static const std::regex kRow("\n\\| `([A-Z_]+)` \\| ([A-Z_]+) \\| ([^|\n]*) \\| ([^|\n]*) \\|");
  const std::string text = ReadSource("docs/errors.md");
  std::map<std::string, Row> rows;
  // A row's end is the next one's beginning.
  auto begin = text.cbegin();
  for (std::smatch row; std::regex_search(begin, text.cend(), row, kRow); begin = row[0].second) {
    EXPECT_TRUE(rows.emplace(row[1], Row{row[2], row[3], row[4]}).second) << row[1] << " twice";
  }
  for (const ReasonCode& known : kReasonCodes) {
    const std::string reason(known.reason);
    ASSERT_TRUE(rows.contains(reason)) << "docs/errors.md lacks " << reason;
    EXPECT_EQ(rows[reason].code, absl::StatusCodeToString(known.code)) << reason;
    EXPECT_GT(rows[reason].cause.size(), 15u) << reason;
    EXPECT_GT(rows[reason].remedy.size(), 10u) << reason;
    rows.erase(reason);
  }
  for (const auto& [reason, row] : rows) ADD_FAILURE() << reason << " is no reason any more";
}

}  // namespace
}  // namespace mneme::server
