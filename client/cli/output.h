// How things are written for people: tables, amounts, and text that a terminal may show.
#pragma once

#include <google/protobuf/duration.pb.h>
#include <google/protobuf/timestamp.pb.h>

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace mneme::cli {

bool StdinIsTty();
bool StdoutIsTty();
bool StderrIsTty();

// For stderr: dimmed on a terminal that can, unless NO_COLOR is set and not empty (no-color.org).
std::string Dim(std::string_view text);

// Text without what could steer a terminal: C0 controls other than newline and tab, DEL, and C1
// controls. A model may be talked into writing escape sequences; pipes get exact bytes instead.
std::string TerminalSafe(std::string_view text);
// Text for stdout: terminal-safe on a terminal, exact otherwise.
std::string ForStdout(std::string_view text);
// One line: quoted, with controls and non-UTF-8 bytes as \x1b, \n, ...
std::string Quoted(std::string_view bytes);

std::string HumanBytes(int64_t bytes);                     // 11.8 MiB
std::string HumanCount(int64_t count);                     // 5,210; at least 0
std::string HumanRate(double rate);                        // 5,210; 27.4; 1.50
std::string HumanSpan(absl::Duration span);                // 45s, 12m, 3h, 9d
std::string Age(const google::protobuf::Timestamp& time);  // since then; "-" if unset

// "90s", "1.5h", "7d" or a sum such as "1h30m".
absl::StatusOr<google::protobuf::Duration> ParseSpan(const std::string& text);

// Columns as wide as their widest cell, two spaces between; the last is not padded.
class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void Print(std::ostream& out) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// All of `argument`, or of stdin if it is "-".
absl::StatusOr<std::string> TextOrStdin(const std::string& argument);

}  // namespace mneme::cli
