#include "engine/tokenizer/template_outline.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/tokenizer/template_expression.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::engine {
namespace {

using ::testing::HasSubstr;

// What `source` may write: places one after another, alternatives apart by '|', what may not be
// written in brackets; marks as R, C, A and <> for stripping. Otherwise the reason.
std::string Outline(std::string_view source) {
  const auto outline = ReadTemplateOutline(source, "[BOS]", "[EOS]");
  if (!outline.ok()) return std::string(outline.status().message());
  std::string text;
  for (const auto& write : outline->writes) {
    const std::string all = absl::StrJoin(write.alternatives, "|");
    absl::StrAppend(&text, write.is_conditional ? absl::StrCat("[", all, "]") : all);
  }
  for (char& c : text) {
    if (c == kRoleMark) c = 'R';
    if (c == kContentMark) c = 'C';
    if (c == kAnswerMark) c = 'A';
    if (c == kTrimOpen) c = '<';
    if (c == kTrimClose) c = '>';
  }
  return text;
}

TEST(TemplateOutline, TextsAndWhiteSpace) {
  EXPECT_EQ(Outline("plain { text %}"), "plain { text %}");
  EXPECT_EQ(Outline("a {{- 'b' -}} c"), "abc");
  EXPECT_EQ(Outline("a\n  {% if true %}\nb\n  {% endif %}\nc"), "a\nb\nc");
  EXPECT_EQ(Outline("a\n  {{ 'b' }}\nc"), "a\n  b\nc");
  EXPECT_EQ(Outline("a {#- never '{{ -#} b"), "ab");
  EXPECT_EQ(Outline("{{ 'it\\'s }} \\n' ~ \"\\t\" }}"), "it's }} \n\t");
}

TEST(TemplateOutline, Fields) {
  EXPECT_EQ(Outline("{% for m in messages %}{{ m.role + m['content'] + m.get('role') }}"
                    "{% endfor %}"),
            "RCR");
  EXPECT_EQ(Outline("{{ messages[0].content | trim }}{{ messages[-1]['content'].strip() }}"),
            "<C><C>");
  EXPECT_EQ(Outline("{{ ' a ' | trim }}{{ messages[0].role | trim }}"), "aR");
  EXPECT_EQ(Outline("{{ bos_token ~ eos_token }}{{ nothing }}{{ nothing | default('d') }}"),
            "[BOS][EOS]d");
  EXPECT_EQ(Outline("{{ messages[0].content.split('</think>')[-1] }}"), "A");
}

TEST(TemplateOutline, ConditionsThatAPlainConversationDecides) {
  for (const char* yes : {"messages",
                          "add_generation_prompt",
                          "not tools",
                          "tools is none",
                          "tools is defined",
                          "enable_thinking is not defined",
                          "m.content is string",
                          "m.role != 'tool'",
                          "not m.tool_calls",
                          "'content' in m",
                          "'tool_calls' not in m",
                          "m.role not in ['tool', 'x']",
                          "m.content is not mapping",
                          "not (a or b)",
                          "'a' == 'a' and 'a' != 'b'",
                          "m is mapping",
                          "true and not false",
                          "('x' if tools else 'y') == 'y'",
                          "1 and not 0",
                          "m.content is iterable"}) {
    const std::string source =
        "{% for m in messages %}{% if X %}yes{% else %}no{% endif %}{% endfor %}";
    std::string with = source;
    EXPECT_EQ(Outline(with.replace(with.find('X'), 1, yes)), "yes") << yes;
    with = source;
    EXPECT_EQ(Outline(with.replace(with.find('X'), 1, absl::StrCat("not (", yes, ")"))), "no")
        << yes;
  }
  for (const char* either :
       {"loop.first", "m.role == 'user'", "m.content", "messages[1:]", "'x' in m.content",
        "m.role in ['user', 'tool']", "loop.index0 > 1", "m.content | length", "m.content == 'x'",
        "m.role == 'user' or tools"}) {
    EXPECT_EQ(Outline(absl::StrCat("{% for m in messages %}{% if ", either,
                                   " %}yes{% else %}no{% endif %}{% endfor %}")),
              "[yes][no]")
        << either;
  }
}

TEST(TemplateOutline, VariablesAreWhatAnyBranchMadeThem) {
  EXPECT_EQ(Outline("{% set x = 'a' %}{% set x = x + 'b' %}{{ x }}"), "ab");
  EXPECT_EQ(Outline("{% set x = 'a' %}{% if messages[0].role == 'user' %}{% set x = 'b' + x %}"
                    "{{ x }}{% endif %}{{ x }}"),
            "[ba]ba|a");
  EXPECT_EQ(Outline("{% if messages[0].role == 'user' %}{% set x = 'a' %}{% elif tools %}"
                    "{% set x = 'b' %}{% else %}{% set x = 'c' %}{% endif %}{{ x }}"),
            "a|c");
  // A loop's variables end with it, those of a namespace do not, and reach its next turn.
  EXPECT_EQ(Outline("{% set x = 'a' %}{% for m in messages %}{% set x = 'b' %}{% endfor %}{{ x }}"),
            "a");
  EXPECT_EQ(Outline("{% set n = namespace(x='a') %}{% for m in messages %}{{ n.x }}"
                    "{% set n.x = m.content %}{% endfor %}"),
            "a|C");
  // A text and a false value cannot be put together, and a condition may rule one out.
  EXPECT_EQ(Outline("{% set x = false %}{% if messages[0].role == 'user' %}{% set x = 'a' %}"
                    "{% endif %}{% if x != false %}{{ '-' + x }}{% endif %}"),
            "[-a]");
  EXPECT_EQ(Outline("{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = m.content %}"
                    "{% endfor %}{% if n.x != '' %}{{ n.x }}{% endif %}"),
            "[C]");
}

TEST(TemplateOutline, LoopsThatLeaveMessagesOut) {
  auto skips = [](std::string_view list) {
    return ReadTemplateOutline(
               absl::StrCat("{% for m in ", std::string(list), " %}{{ m.role }}{% endfor %}"), "",
               "")
        ->skips_messages;
  };
  EXPECT_FALSE(skips("messages"));
  EXPECT_FALSE(skips("messages[0:]"));
  EXPECT_TRUE(skips("messages[1:]"));
  EXPECT_TRUE(skips("messages if m.role != 'system'"));
  EXPECT_EQ(Outline("{% for t in tools %}{{ t }}{% endfor %}"), "");
  EXPECT_EQ(Outline("{% for t in tools %}{{ t }}{% else %}none{% endfor %}"), "none");
}

TEST(TemplateOutline, WhatIsNotFollowed) {
  EXPECT_THAT(Outline("{{ messages[0].content | upper }}"), HasSubstr("more than roles and"));
  EXPECT_THAT(Outline("{% for m in messages[::-1] %}{{ m.content }}{% endfor %}"),
              HasSubstr("writes m.content"));
  EXPECT_THAT(Outline("{% macro f(x) %}{{ x }}{% endmacro %}{{ f(1) }}"), HasSubstr("writes f(1)"));
  EXPECT_THAT(Outline("{% set x %}text{% endset %}{{ x }}"), HasSubstr("writes x"));
  EXPECT_THAT(Outline("{% include 'x' %}"), HasSubstr("uses {% include %}"));
  EXPECT_THAT(Outline("{{ {'a': 1} }}"), HasSubstr("cannot follow"));
  EXPECT_THAT(Outline("{% endif %}"), HasSubstr("endif"));
  for (const char* open : {"{% if a %}", "{% for a in b %}", "{% set a %}", "{% macro a() %}"}) {
    EXPECT_THAT(Outline(open), HasSubstr("ends inside of a block")) << open;
  }
  EXPECT_THAT(Outline("\x02"), HasSubstr("control characters"));
  EXPECT_THAT(Outline("\xFF"), HasSubstr("UTF-8"));
}

// Sizes that a hostile program could make grow without end.
TEST(TemplateOutline, BoundsItsWork) {
  std::string doubling = "{% set x = 'aaaaaaaa' %}";
  for (int i = 0; i < 60; ++i) doubling += "{% set x = x + x %}";
  EXPECT_THAT(Outline(doubling + "{{ x }}"), HasSubstr("writes x"));
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "{% if a %}";
  EXPECT_THAT(Outline(deep), HasSubstr("nested"));
  EXPECT_THAT(Outline("{{ " + std::string(5000, '(') + " }}"), HasSubstr("cannot follow"));
  std::string many;
  for (int i = 0; i < 100; ++i) absl::StrAppend(&many, "{% set v", i, " = 'a' %}");
  EXPECT_THAT(Outline(many), HasSubstr("variables"));
  EXPECT_THAT(Outline(std::string(100000, 'a')), HasSubstr("long"));
}

}  // namespace
}  // namespace mneme::engine
