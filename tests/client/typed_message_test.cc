#include "client/cli/typed_message.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace mneme::cli {
namespace {

// Commands are shown in brackets.
std::vector<std::string> Messages(const std::vector<std::string>& lines) {
  TypedMessageReader reader;
  std::vector<std::string> messages;
  for (const std::string& line : lines) {
    if (auto message = reader.Add(line)) {
      messages.push_back(message->command ? "[" + message->text + "]" : message->text);
    }
  }
  if (reader.waiting()) messages.push_back("...");
  return messages;
}

using ::testing::ElementsAre;

TEST(TypedMessage, LinesAndCommands) {
  EXPECT_THAT(Messages({"Hi", "", "/quit", "//text", "a / b"}),
              ElementsAre("Hi", "", "[/quit]", "/text", "a / b"));
}

TEST(TypedMessage, ABackslashJoinsLines) {
  EXPECT_THAT(Messages({"one \\", "two\\", "/three", "four"}),
              ElementsAre("one \ntwo\n/three", "four"));
  EXPECT_THAT(Messages({"one\\"}), ElementsAre("..."));
}

TEST(TypedMessage, ABlockIsTakenAsItIs) {
  EXPECT_THAT(Messages({"\"\"\"", "/a", "", "b\\", "\"\"\"c", "\"\"\"", "next"}),
              ElementsAre("/a\n\nb\\\n\"\"\"c", "next"));
  EXPECT_THAT(Messages({"\"\"\"a", "b\"\"\""}), ElementsAre("a\nb"));
  EXPECT_THAT(Messages({"\"\"\"a\"\"\""}), ElementsAre("a"));
  EXPECT_THAT(Messages({"\"\"\"", "a"}), ElementsAre("..."));
}

TEST(TypedMessage, APasteIsOneMessage) {
  EXPECT_THAT(Messages({"/usr/bin\nls \\", "next"}), ElementsAre("/usr/bin\nls \\", "next"));
  EXPECT_THAT(Messages({"\"\"\"", "a\nb", "\"\"\""}), ElementsAre("a\nb"));
}

TEST(TypedMessage, ClearForgetsWhatHasBegun) {
  TypedMessageReader reader;
  reader.Add("\"\"\"");
  reader.Add("half");
  reader.Clear();
  EXPECT_FALSE(reader.waiting());
  EXPECT_EQ(reader.Add("whole")->text, "whole");
}

}  // namespace
}  // namespace mneme::cli
