// One line on stderr that says how far a long job is: redrawn on a terminal, otherwise a new line
// every few seconds.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>

#include "absl/time/time.h"

namespace mneme::cli {

// The line for `done` of `total` bytes (total < 0: unknown), `width` columns at most. tokens < 0:
// nothing is read. `state` says how large the session's is; may be empty.
std::string ProgressLine(int64_t done_bytes, int64_t total_bytes, int64_t tokens,
                         double tokens_per_second, double bytes_per_second, std::string_view state,
                         int width);

// Threads: one.
class ProgressBar {
 public:
  explicit ProgressBar(int64_t total_bytes);
  void Update(int64_t done_bytes, int64_t tokens = -1, int64_t state_bytes = 0);
  void Message(const std::string& text);  // a line of its own above the bar
  void Finish();                          // leaves the last state of the bar

 private:
  struct Sample {
    absl::Time time;
    int64_t bytes, tokens;
  };
  void Draw(bool last);

  const int64_t total_bytes_;
  const bool tty_;
  int64_t bytes_ = 0, tokens_ = 0, state_bytes_ = 0;
  bool state_grows_ = false;
  std::deque<Sample> recent_;  // the last ten seconds: what the rates are taken from
  absl::Time drawn_ = absl::InfinitePast();
  bool drawn_any_ = false;
};

}  // namespace mneme::cli
