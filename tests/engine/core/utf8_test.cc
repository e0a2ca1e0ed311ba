#include "engine/core/utf8.h"

#include <gtest/gtest.h>

namespace mneme::engine {
namespace {

using Kind = Utf8Character::Kind;

TEST(Utf8, EveryCharacterComesBackAndEveryBeginningIsUnfinished) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    AppendUtf8(c, &text);
    ASSERT_TRUE(IsValidUtf8(text)) << static_cast<uint32_t>(c);
    for (const Utf8Character& found : {DecodeUtf8(text + "x"), DecodeLastUtf8("x" + text)}) {
      ASSERT_EQ(found.kind, Kind::kWhole);
      ASSERT_EQ(found.size_bytes, text.size());
      ASSERT_EQ(found.code_point, c);
    }
    ASSERT_EQ(UnfinishedUtf8Bytes(text), 0u);
    for (size_t n = 1; n < text.size(); ++n) {
      ASSERT_EQ(UnfinishedUtf8Bytes("\xC3\xA9" + text.substr(0, n)), n) << static_cast<uint32_t>(c);
    }
  }
}

// Of each form that looks like a character: how much of it could have begun one.
TEST(Utf8, RefusesWhatTheStandardRefuses) {
  const std::pair<std::string, size_t> refused[] = {{"\x80", 1},
                                                    {"\xC0\x80", 1},
                                                    {"\xC1\xBF", 1},
                                                    {"\xE0\x80\x80", 1},
                                                    {"\xE0\x9F\xBF", 1},
                                                    {"\xED\xA0\x80", 1},
                                                    {"\xED\xBF\xBF", 1},
                                                    {"\xF0\x80\x80\x80", 1},
                                                    {"\xFF", 1},
                                                    {"\xF0\x8F\xBF\xBF", 1},
                                                    {"\xF4\x90\x80\x80", 1},
                                                    {"\xF5\x80\x80\x80", 1},
                                                    {"\xC3(", 1},
                                                    {"\xE4\xB8(", 2},
                                                    {"\xF0\x9F\x98(", 3}};
  for (const auto& [bad, beginning] : refused) {
    EXPECT_EQ(DecodeUtf8(bad).kind, Kind::kInvalid) << testing::PrintToString(bad);
    EXPECT_EQ(DecodeUtf8(bad).size_bytes, beginning) << testing::PrintToString(bad);
    for (const std::string before : {"", "12345678", "1234567", "\xC3\xA9"}) {
      EXPECT_EQ(ValidUtf8Bytes(before + bad), before.size()) << testing::PrintToString(bad);
    }
  }
  EXPECT_TRUE(IsValidUtf8(""));
  EXPECT_EQ(UnfinishedUtf8Bytes(""), 0u);
  EXPECT_EQ(UnfinishedUtf8Bytes("\xC3\xA9\xA9"), 0u);
  EXPECT_EQ(UnfinishedUtf8Bytes("\xE0\x80"), 0u);
}

TEST(Utf8, ReplacesEachBeginningByOneCharacter) {
  EXPECT_EQ(ReplaceInvalidUtf8("a\xC3\xA9"), "a\xC3\xA9");
  EXPECT_EQ(ReplaceInvalidUtf8("a\xF0\x9F\x98z\xFF"), "a\xEF\xBF\xBDz\xEF\xBF\xBD");
  EXPECT_EQ(ReplaceInvalidUtf8("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(ReplaceInvalidUtf8("a\xF0\x9F"), "a\xEF\xBF\xBD");
}

}  // namespace
}  // namespace mneme::engine
