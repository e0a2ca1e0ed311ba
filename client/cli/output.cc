#include "client/cli/output.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/utf8.h"

namespace mneme::cli {
namespace {

// Terminal columns of UTF-8 text, wide characters counted once.
size_t Width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

bool StdinIsTty() { return isatty(STDIN_FILENO) == 1; }
bool StdoutIsTty() { return isatty(STDOUT_FILENO) == 1; }
bool StderrIsTty() { return isatty(STDERR_FILENO) == 1; }

std::string Dim(std::string_view text) {
  const char* no_color = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  const bool colors = StderrIsTty() && (no_color == nullptr || *no_color == '\0') &&
                      terminal != nullptr && std::string_view(terminal) != "dumb";
  return colors ? absl::StrCat("\033[2m", std::string(text), "\033[0m") : std::string(text);
}

std::string TerminalSafe(std::string_view text) {
  std::string safe;
  safe.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) continue;
    // C1 controls are U+0080..U+009F: C2 80..C2 9F.
    if (c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0) {
      ++i;
      continue;
    }
    safe += text[i];
  }
  return safe;
}

std::string ForStdout(std::string_view text) {
  return StdoutIsTty() ? TerminalSafe(text) : std::string(text);
}

std::string Quoted(std::string_view bytes) {
  std::string out = "\"";
  for (size_t i = 0; i < bytes.size();) {
    const auto c = static_cast<unsigned char>(bytes[i]);
    const size_t length = client::Utf8CharacterBytes(bytes.substr(i));
    const bool c1 = length == 2 && c == 0xc2 && static_cast<unsigned char>(bytes[i + 1]) < 0xa0;
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += bytes[i];
    } else if (length == 0 || c1 || c < 0x20 || c == 0x7f) {
      out += absl::StrFormat("\\x%02x", c);
    } else {
      out += bytes.substr(i, length);
      i += length;
      continue;
    }
    ++i;
  }
  return out + "\"";
}

std::string HumanBytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string HumanCount(int64_t count) {
  std::string digits = absl::StrCat(count);
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3) {
    digits.insert(static_cast<size_t>(i), ",");
  }
  return digits;
}

std::string HumanRate(double rate) {
  if (rate < 10) return absl::StrFormat("%.2f", rate);
  if (rate < 100) return absl::StrFormat("%.1f", rate);
  return HumanCount(std::llround(rate));
}

std::string HumanSpan(absl::Duration span) {
  const int64_t s = absl::ToInt64Seconds(span);
  if (s < 120) return absl::StrCat(s, "s");
  if (s < 2 * 3600) return absl::StrCat(s / 60, "m");
  if (s < 48 * 3600) return absl::StrCat(s / 3600, "h");
  return absl::StrCat(s / 86400, "d");
}

std::string Age(const google::protobuf::Timestamp& time) {
  if (time.seconds() == 0) return "-";
  return HumanSpan(
      std::max(absl::Now() - absl::FromUnixSeconds(time.seconds()), absl::ZeroDuration()));
}

absl::StatusOr<google::protobuf::Duration> ParseSpan(const std::string& text) {
  absl::Duration span;
  double days = 0;
  char unit = 0, rest = 0;
  if (std::sscanf(text.c_str(), "%lf%c%c", &days, &unit, &rest) == 2 && unit == 'd') {
    span = absl::Hours(24) * days;
  } else if (!absl::ParseDuration(text, &span)) {
    return absl::InvalidArgumentError(
        absl::StrCat("bad time span '", text, "': expected one such as 90s, 1h30m or 7d"));
  }
  google::protobuf::Duration proto;
  proto.set_seconds(absl::IDivDuration(span, absl::Seconds(1), &span));
  proto.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(span)));
  return proto;
}

void Table::Print(std::ostream& out) const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  }
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) {
      out << ForStdout(row[i]);
      if (i + 1 < row.size()) out << std::string(widths[i] - Width(row[i]) + 2, ' ');
    }
    out << "\n";
  }
}

absl::StatusOr<std::string> TextOrStdin(const std::string& argument) {
  if (argument != "-") return argument;
  std::string text{std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
  if (std::cin.bad()) return absl::DataLossError("stdin could not be read");
  return text;
}

}  // namespace mneme::cli
