#include "client/cli/output.h"

#include <gtest/gtest.h>

#include <limits>
#include <sstream>

#include "client/cli/json.h"
#include "client/cli/progress_bar.h"
#include "mneme/v1/generation.pb.h"
#include "mneme/v1/sessions.pb.h"

namespace mneme::cli {
namespace {

TEST(TerminalSafe, DropsWhatSteersATerminal) {
  EXPECT_EQ(TerminalSafe("a\x1b[31mb\nc\td"), "a[31mb\nc\td");
  EXPECT_EQ(TerminalSafe(std::string_view("a\0b\r\x07\x7f\x08", 7)), "ab");
  EXPECT_EQ(TerminalSafe("\xc2\x9b"
                         "31m"),
            "31m");  // C1: one-character CSI
  EXPECT_EQ(TerminalSafe("caf\xc3\xa9 \xc2\xa9"), "caf\xc3\xa9 \xc2\xa9");
}

TEST(Quoted, ShowsEveryByte) {
  EXPECT_EQ(Quoted("a\n\"\\"), R"("a\n\"\\")");
  EXPECT_EQ(Quoted("\x1b\xff\xc3"), R"("\x1b\xff\xc3")");
  EXPECT_EQ(Quoted("\xc3\xa9"), "\"\xc3\xa9\"");
}

TEST(Amounts, ReadWell) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(12 << 20), "12.0 MiB");
  EXPECT_EQ(HumanCount(5210), "5,210");
  EXPECT_EQ(HumanCount(1234567), "1,234,567");
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(HumanCount(27), "27");
  EXPECT_EQ(HumanRate(27.44), "27.4");
  EXPECT_EQ(HumanRate(1.5), "1.50");
  EXPECT_EQ(HumanSpan(absl::Minutes(90)), "90m");
  EXPECT_EQ(HumanSpan(absl::Hours(72)), "3d");
}

TEST(ParseSpan, UnitsAndDays) {
  EXPECT_EQ(ParseSpan("90s")->seconds(), 90);
  EXPECT_EQ(ParseSpan("1h30m")->seconds(), 5400);
  EXPECT_EQ(ParseSpan("7d")->seconds(), 7 * 86400);
  EXPECT_EQ(ParseSpan("1.5s")->nanos(), 500'000'000);
  for (const char* bad : {"", "7", "d", "7dx", "soon"}) EXPECT_FALSE(ParseSpan(bad).ok()) << bad;
}

TEST(Table, AlignsColumnsByCharacters) {
  Table table({"A", "BB"});
  table.Add({"caf\xc3\xa9", "x"});
  table.Add({"y", "zz"});
  std::ostringstream out;
  table.Print(out);
  EXPECT_EQ(out.str(), "A     BB\ncaf\xc3\xa9  x\ny     zz\n");
}

TEST(ProgressLine, FitsAndTells) {
  const std::string line =
      ProgressLine(512 << 10, 1 << 20, 131072, 5210, 1024 * 100, "12.0 MiB, constant", 120);
  EXPECT_NE(line.find(" 50%"), std::string::npos) << line;
  EXPECT_NE(line.find("131,072 tokens"), std::string::npos) << line;
  EXPECT_NE(line.find("5,210 tok/s"), std::string::npos) << line;
  EXPECT_NE(line.find("ETA 0:05"), std::string::npos) << line;
  EXPECT_NE(line.find("state 12.0 MiB"), std::string::npos) << line;
  const std::string file = ProgressLine(512 << 10, 1 << 20, -1, 0, 1024 * 100, "", 120);
  EXPECT_EQ(file.find("tok"), std::string::npos) << file;
  EXPECT_NE(file.find("100.0 KiB/s"), std::string::npos) << file;
  for (int width : {0, 10, 40, 80, 200}) {
    EXPECT_LE(ProgressLine(1, 2, 3, 4, 5, "6 B", width).size(), static_cast<size_t>(width));
    EXPECT_LE(ProgressLine(1, -1, 3, 4, 5, "6 B", width).size(), static_cast<size_t>(width));
  }
  // A bar with all that matters at the widths terminals have; what matters least is left out.
  for (int width : {79, 99, 119}) {
    const std::string bar = ProgressLine(900 << 20, 1000 << 20, 12'345'678, 123'456, 1024 * 1024,
                                         "180.0 MiB, constant", width);
    EXPECT_EQ(bar.front(), '[') << bar;
    EXPECT_LE(bar.size(), static_cast<size_t>(width)) << bar;
    for (const char* part : {" 90%", "900.0 MiB of 1000.0 MiB", "123,456 tok/s", "ETA 1:40"}) {
      EXPECT_NE(bar.find(part), std::string::npos) << bar;
    }
    EXPECT_EQ(bar.find("12,345,678 tokens") != std::string::npos, width >= 99) << bar;
    EXPECT_EQ(bar.find("state 180.0 MiB, constant") != std::string::npos, width >= 119) << bar;
    EXPECT_EQ(bar.find("  ", bar.size() - 2), std::string::npos) << bar;
  }
  EXPECT_NE(ProgressLine(0, 0, 0, 0, 0, "", 80).find("100%"), std::string::npos);
}

TEST(Json, NumbersEnumsMapsTimes) {
  v1::Session session;
  session.set_name("n");
  session.set_position_tokens(int64_t{1} << 40);
  session.set_state(v1::Session::ACTIVE);
  (*session.mutable_labels())["k"] = "v";
  session.mutable_create_time()->set_seconds(0);
  session.mutable_idle_ttl()->set_seconds(90);
  Json j = ToJson(session);
  EXPECT_EQ(j["position_tokens"], int64_t{1} << 40);
  EXPECT_EQ(j["state"], "ACTIVE");
  EXPECT_EQ(j["labels"]["k"], "v");
  EXPECT_EQ(j["create_time"], "1970-01-01T00:00:00Z");
  EXPECT_EQ(j["idle_ttl"], "90s");
  EXPECT_FALSE(j.contains("delete_time"));
  EXPECT_EQ(j["version"], 0);  // plain fields are there even if zero
}

TEST(Json, BytesAndWhatJsonHasNoNumberFor) {
  v1::TokenizeResponse tokens;
  tokens.add_pieces("\xff");
  EXPECT_EQ(ToJson(tokens)["pieces"][0], "/w==");
  v1::Logprobs logprobs;
  logprobs.set_logprob(-std::numeric_limits<float>::infinity());
  EXPECT_EQ(Dump(ToJson(logprobs)), R"({"logprob":"-Infinity","top":[]})");
}

}  // namespace
}  // namespace mneme::cli
