// Streamed text: UTF-8, stop sequences, names, filters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "engine/core/utf8.h"
#include "server/core/errors.h"
#include "server/core/resource_id.h"
#include "server/core/session_filter.h"
#include "server/core/session_names.h"
#include "server/core/stop_matcher.h"
#include "server/core/utf8_stream.h"

namespace mneme::server {
namespace {

using ::testing::ElementsAre;

TEST(Utf8Stream, IsTheSameHoweverItIsCut) {
  const std::string text = "x\xC3\xA9\xE2\x82\xAC\xFF\xF0\x9F\x98\x80\xE2\x28y\xF0\x9F";
  Utf8Stream whole;
  std::string expected = whole.Feed(text);
  expected += whole.Flush();
  EXPECT_TRUE(engine::IsValidUtf8(expected));
  Utf8Stream bytes;
  std::string out;
  for (char c : text) {
    const std::string part = bytes.Feed(std::string(1, c));
    EXPECT_TRUE(engine::IsValidUtf8(part));
    out += part;
  }
  out += bytes.Flush();
  EXPECT_EQ(out, expected);
  EXPECT_EQ(out, engine::ReplaceInvalidUtf8(text));
}

struct Stopped {
  std::string text;
  int64_t match;
};

// Every way to cut a short text, against the definition.
Stopped Reference(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const auto& s : stops) {
      if (std::string_view(text).substr(0, end).ends_with(s)) longest = std::max(longest, s.size());
    }
    if (longest > 0) {
      return {text.substr(0, end - longest), static_cast<int64_t>(end - longest)};
    }
  }
  return {text, -1};
}

TEST(StopMatcher, EveryCutGivesTheSame) {
  const std::vector<std::vector<std::string>> sets = {
      {}, {"ab"}, {"aab", "b"}, {"aba"}, {"abab", "bb", "aaaa"}, {"baa", "aa"}};
  std::mt19937 random(7);
  for (const auto& stops : sets) {
    for (int round = 0; round < 60; ++round) {
      std::string text;
      for (int i = 0; i < 9; ++i) text += static_cast<char>('a' + random() % 2);
      const Stopped expected = Reference(text, stops);
      for (int cuts = 0; cuts < 256; ++cuts) {
        StopMatcher matcher(stops);
        std::string out, part;
        for (size_t i = 0; i < text.size() && !matcher.match(); ++i) {
          part += text[i];
          if (i + 1 == text.size() || (cuts >> i & 1)) {
            out += matcher.Feed(part);
            part.clear();
            // Nothing that could still be the beginning of a match has been let out.
            EXPECT_TRUE(expected.text.starts_with(out)) << text << " " << cuts;
          }
        }
        out += matcher.Flush();
        ASSERT_EQ(out, expected.text) << text << " cut " << cuts;
        ASSERT_EQ(matcher.match().value_or(-1), expected.match);
      }
    }
  }
}

TEST(StopMatcher, ReleasesWhatCannotMatchAtOnce) {
  StopMatcher matcher({"STOP"});
  EXPECT_EQ(matcher.Feed("hello S"), "hello ");
  EXPECT_EQ(matcher.Feed("TO"), "");
  EXPECT_EQ(matcher.Feed("x"), "STOx");
  EXPECT_EQ(matcher.Feed("ST"), "");
  EXPECT_EQ(matcher.Flush(), "ST");
}

TEST(SessionNames, Ids) {
  for (const char* good : {"a", "a-b", "s-1", "abc9"}) EXPECT_TRUE(IsValidId(good)) << good;
  EXPECT_TRUE(IsValidId(std::string(63, 'a')));
  for (const char* bad : {"", "A", "1a", "a-", "-a", "a_b", "a/b", "a b", "\xC3\xA9"}) {
    EXPECT_FALSE(IsValidId(bad)) << bad;
  }
  EXPECT_FALSE(IsValidId(std::string(64, 'a')));
  EXPECT_TRUE(IsValidId(MakeSessionId()));
  EXPECT_NE(MakeSessionId(), MakeSessionId());
  EXPECT_EQ(MakeUid().size(), 36u);
}

TEST(SessionNames, TenantIsChecked) {
  auto ok = ParseSessionName("tenants/t/sessions/s", "name", "t");
  ASSERT_TRUE(ok.ok());
  EXPECT_EQ(ok->str(), "tenants/t/sessions/s");
  EXPECT_EQ(ReasonOf(ParseSessionName("tenants/u/sessions/s", "name", "t").status()),
            reason::kAccessDenied);
  for (const char* bad : {"", "S", "sessions/s", "tenants/t/sessions/", "tenants/t/sessions/S",
                          "tenants/t/sessions/s/", "tenants/t/models/s", "/tenants/t/sessions/s"}) {
    EXPECT_EQ(ReasonOf(ParseSessionName(bad, "name", "t").status()), reason::kFieldInvalid) << bad;
  }
}

TEST(SessionNames, ShortFormsAreOfTheCallersTenant) {
  EXPECT_EQ(ParseSessionName("s", "name", "t")->str(), "tenants/t/sessions/s");
  for (const char* name : {"s@c", "s/snapshots/c", "tenants/t/sessions/s@c"}) {
    EXPECT_EQ(ParseSnapshotName(name, "name", "t")->str(), "tenants/t/sessions/s/snapshots/c");
    const auto source = ParseSourceName(name, "name", "t");
    ASSERT_TRUE(source.ok() && source->snapshot);
    EXPECT_EQ(source->session.str(), "tenants/t/sessions/s");
    EXPECT_EQ(source->snapshot->str(), "tenants/t/sessions/s/snapshots/c");
  }
  const auto session = ParseSourceName("s", "name", "t");
  ASSERT_TRUE(session.ok());
  EXPECT_EQ(session->session.str(), "tenants/t/sessions/s");
  EXPECT_FALSE(session->snapshot);
  for (const char* bad : {"", "c", "s@", "@c", "s@c@d", "s@C", "s/c"}) {
    EXPECT_EQ(ReasonOf(ParseSnapshotName(bad, "name", "t").status()), reason::kFieldInvalid) << bad;
  }
  EXPECT_EQ(*ParseGenerationName("g", "name", "t"), "tenants/t/generations/g");
  for (const char* parent : {"", "t", "tenants/t"}) {
    EXPECT_TRUE(CheckTenantName(parent, "parent", "t").ok()) << parent;
  }
  EXPECT_EQ(ReasonOf(CheckTenantName("u", "parent", "t")), reason::kAccessDenied);
  EXPECT_EQ(FullModelName("m"), "models/m");
  EXPECT_EQ(FullModelName("models/m"), "models/m");
}

TEST(SessionNames, PageTokensAreBound) {
  const std::string token = MakePageToken("scope a", "position");
  EXPECT_EQ(*ReadPageToken("scope a", token), "position");
  EXPECT_EQ(ReasonOf(ReadPageToken("scope b", token).status()), reason::kPageTokenInvalid);
  std::string altered = token;
  altered[3] = altered[3] == 'A' ? 'B' : 'A';
  EXPECT_FALSE(ReadPageToken("scope a", altered).ok());
  EXPECT_FALSE(ReadPageToken("scope a", "!!").ok());
}

TEST(SessionFilter, Grammar) {
  v1::Session session;
  session.set_state(v1::Session::ACTIVE);
  session.set_model("models/m");
  (*session.mutable_labels())["key"] = "a \"b\"";
  const auto matches = [&](const char* text) {
    auto filter = SessionFilter::Parse(text);
    EXPECT_TRUE(filter.ok()) << text << filter.status();
    return filter.ok() && filter->Matches(session);
  };
  EXPECT_TRUE(matches(""));
  EXPECT_TRUE(matches("state = ACTIVE"));
  EXPECT_FALSE(matches("state=DELETED"));
  EXPECT_TRUE(matches("state = ACTIVE AND model = \"models/m\" AND labels.key = \"a \\\"b\\\"\""));
  EXPECT_TRUE(matches("model = models/m"));
  EXPECT_TRUE(matches("model = m"));
  EXPECT_FALSE(matches("model = n"));
  EXPECT_FALSE(matches("labels.other = x"));
  for (const char* bad :
       {"state", "state =", "state = NONSENSE", "size = 3", "state = ACTIVE OR x = y",
        "state = ACTIVE model = m", "labels.key = \"x", "AND", "labels. = x"}) {
    EXPECT_EQ(ReasonOf(SessionFilter::Parse(bad).status()), reason::kFieldInvalid) << bad;
  }
}

}  // namespace
}  // namespace mneme::server
