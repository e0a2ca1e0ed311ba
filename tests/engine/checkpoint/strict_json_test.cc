// The strict parser: bounds, duplicate keys, and what lenient parsers let through.
#include "engine/checkpoint/strict_json.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::engine {
namespace {

using ::testing::HasSubstr;

void ExpectRefused(std::string_view text, std::string_view message, JsonLimits limits = {}) {
  const auto value = ParseStrictJson(text, "x.json", limits);
  ASSERT_FALSE(value.ok()) << "accepted: " << text.substr(0, 80);
  EXPECT_EQ(value.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(value.status().message()), HasSubstr("x.json: "));
  EXPECT_THAT(std::string(value.status().message()), HasSubstr(std::string(message)));
}

TEST(StrictJsonTest, BuildsTheDocument) {
  const std::string_view text =
      R"({"a":[1,-2,0.5,true,null,"\u00e9\ud83d\ude00"],"b":{"c":{}},"d":[[],[{}]],"":""})";
  const auto value = ParseStrictJson(text, "x.json");
  ASSERT_TRUE(value.ok()) << value.status();
  // Independent of our handler: nlohmann's own builder.
  EXPECT_EQ(*value, nlohmann::json::parse(text));
  EXPECT_EQ((*value)["a"][5], "\xC3\xA9\xF0\x9F\x98\x80");
  for (const char* scalar : {"1", "\"s\"", "null", "true", " [] ", "-0.0"}) {
    const auto one = ParseStrictJson(scalar, "x.json");
    ASSERT_TRUE(one.ok()) << one.status();
    EXPECT_EQ(*one, nlohmann::json::parse(scalar));
  }
}

TEST(StrictJsonTest, IntegersKeep64Bits) {
  const auto value = ParseStrictJson("[18446744073709551615,9007199254740993,-0,1.0,1e2]", "x");
  ASSERT_TRUE(value.ok());
  EXPECT_EQ((*value)[0].get<uint64_t>(), ~uint64_t{0});
  EXPECT_EQ((*value)[1].get<uint64_t>(), 9007199254740993u);
  EXPECT_TRUE((*value)[1].is_number_unsigned());
  EXPECT_FALSE((*value)[2].is_number_unsigned());
  EXPECT_TRUE((*value)[3].is_number_float());
  EXPECT_TRUE((*value)[4].is_number_float());
}

TEST(StrictJsonTest, RefusesBadText) {
  using namespace std::literals;
  for (const char* bad :
       {"",        "{",           "[1,]",        "{\"a\":1,}",   "// c\n1",  "'a'",
        "01",      "+1",          ".5",          "1.",           "NaN",      "Infinity",
        "1 2",     "{} x",        "tru",         "[1 2]",        "{1:2}",    "\"\t\"",
        "\"\\x\"", "\"\\ud800\"", "\"\\udc00\"", "\"\xC0\xAF\"", "\"\xFF\"", "1e999",
        "\"abc"}) {
    ExpectRefused(bad, "not valid JSON at byte ");
  }
  ExpectRefused("\xEF\xBB\xBF{}", "byte order mark");
  ExpectRefused("{}\0{}"sv, "NUL byte at byte 2");
  ExpectRefused("\"a\0b\""sv, "NUL byte at byte 2");
}

TEST(StrictJsonTest, RefusesDuplicateKeysAfterUnescaping) {
  ExpectRefused(R"({"a":1,"a":1})", "key \"a\" occurs twice");
  ExpectRefused(R"({"a":1,"\u0061":2})", "key \"a\" occurs twice");
  ExpectRefused(R"([{"x":{"y":1,"z":2,"y":3}}])", "key \"y\" occurs twice");
  EXPECT_TRUE(ParseStrictJson(R"({"a":{"a":1},"b":{"a":1}})", "x").ok());
}

TEST(StrictJsonTest, EnforcesLimits) {
  ExpectRefused("12345", "5 bytes, at most 4", {.max_bytes = 4});
  EXPECT_TRUE(ParseStrictJson("[[1]]", "x", {.max_depth = 2}).ok());
  ExpectRefused("[[[1]]]", "nested deeper than 2", {.max_depth = 2});
  ExpectRefused("{\"a\":{\"b\":[]}}", "nested deeper than 2", {.max_depth = 2});
  ExpectRefused(std::string(1'000'000, '['), "nested deeper than 32");
  EXPECT_TRUE(ParseStrictJson("[1,2,3]", "x", {.max_values = 4}).ok());
  ExpectRefused("[1,2,3,4]", "more than 4 values", {.max_values = 4});
  ExpectRefused("{\"a\":1,\"b\":2}", "more than 4 values", {.max_values = 4});
  EXPECT_TRUE(ParseStrictJson("\"abcd\"", "x", {.max_string_bytes = 4}).ok());
  ExpectRefused("\"abcde\"", "a string of 5 bytes, at most 4", {.max_string_bytes = 4});
  ExpectRefused("{\"abcde\":1}", "a string of 5 bytes, at most 4", {.max_string_bytes = 4});
}

}  // namespace
}  // namespace mneme::engine
