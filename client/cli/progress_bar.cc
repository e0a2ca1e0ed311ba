#include "client/cli/progress_bar.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/output.h"

namespace mneme::cli {
namespace {

std::string Clock(double seconds) {
  const auto s = int64_t{std::llround(seconds)};
  return s >= 3600 ? absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60)
                   : absl::StrFormat("%d:%02d", s / 60, s % 60);
}

int TerminalWidth() {
  winsize size = {};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 100;
}

}  // namespace

std::string ProgressLine(int64_t done_bytes, int64_t total_bytes, int64_t tokens,
                         double tokens_per_second, double bytes_per_second, std::string_view state,
                         int width) {
  const bool known = total_bytes >= 0;
  // What is said, in this order; where there is no room, what matters least goes first.
  struct Part {
    std::string text;
    int weight;
  };
  std::vector<Part> parts = {
      {known ? absl::StrCat(HumanBytes(done_bytes), " of ", HumanBytes(total_bytes))
             : HumanBytes(done_bytes),
       5}};
  if (tokens >= 0) {
    parts.push_back({absl::StrCat(HumanCount(tokens), " tokens"), 2});
    parts.push_back({absl::StrCat(HumanRate(tokens_per_second), " tok/s"), 4});
  } else {
    parts.push_back({absl::StrCat(HumanBytes(static_cast<int64_t>(bytes_per_second)), "/s"), 4});
  }
  if (known && bytes_per_second > 0 && done_bytes < total_bytes) {
    const double left = static_cast<double>(total_bytes - done_bytes) / bytes_per_second;
    parts.push_back({absl::StrCat("ETA ", Clock(left)), 3});
  }
  if (!state.empty()) parts.push_back({absl::StrCat("state ", std::string(state)), 1});
  const double share =
      !known ? 0
      : total_bytes == 0
          ? 1
          : std::min(1.0, static_cast<double>(done_bytes) / static_cast<double>(total_bytes));
  const std::string percent = known ? absl::StrFormat("%3.0f%%  ", share * 100) : "";
  const auto line = [&] {
    return percent + absl::StrJoin(parts, "  ", [](std::string* out, const Part& part) {
             out->append(part.text);
           });
  };
  constexpr int kLeastCells = 8, kMostCells = 30, kFrame = 3;  // "[", "] "
  const auto room = [&] { return width - static_cast<int>(line().size()) - (known ? kFrame : 0); };
  while (room() < (known ? kLeastCells : 0) && parts.size() > 1) {
    parts.erase(std::min_element(parts.begin(), parts.end(),
                                 [](const Part& a, const Part& b) { return a.weight < b.weight; }));
  }
  std::string text = line();
  if (known && room() >= kLeastCells) {
    const int cells = std::min(room(), kMostCells);
    const int full = static_cast<int>(share * cells);
    text = absl::StrCat("[", std::string(static_cast<size_t>(full), '='),
                        std::string(static_cast<size_t>(cells - full), ' '), "] ", text);
  }
  text.resize(std::min(text.size(), static_cast<size_t>(std::max(width, 0))));
  return text;
}

ProgressBar::ProgressBar(int64_t total_bytes) : total_bytes_(total_bytes), tty_(StderrIsTty()) {}

void ProgressBar::Update(int64_t done_bytes, int64_t tokens, int64_t state_bytes) {
  bytes_ = done_bytes;
  tokens_ = tokens;
  state_grows_ |= state_bytes_ > 0 && state_bytes != state_bytes_;
  state_bytes_ = state_bytes;
  const absl::Time now = absl::Now();
  // A resumed ingest starts in the middle: rates count from the first sample on.
  recent_.push_back({now, done_bytes, tokens});
  while (recent_.size() > 2 && now - recent_.front().time > absl::Seconds(10)) recent_.pop_front();
  const absl::Duration every = tty_ ? absl::Milliseconds(100) : absl::Seconds(5);
  if (now - drawn_ >= every) Draw(false);
}

void ProgressBar::Draw(bool last) {
  const Sample& first = recent_.front();
  const double seconds = absl::ToDoubleSeconds(recent_.back().time - first.time);
  const double token_rate = seconds > 0 ? static_cast<double>(tokens_ - first.tokens) / seconds : 0;
  const double byte_rate = seconds > 0 ? static_cast<double>(bytes_ - first.bytes) / seconds : 0;
  std::string state;
  if (state_bytes_ > 0) {
    state = absl::StrCat(HumanBytes(state_bytes_), state_grows_ ? "" : ", constant");
  }
  const std::string line = ProgressLine(bytes_, total_bytes_, tokens_, token_rate, byte_rate, state,
                                        tty_ ? TerminalWidth() - 1 : 200);
  if (tty_) {
    std::cerr << "\r\033[K" << line << (last ? "\n" : "") << std::flush;
  } else {
    std::cerr << line << "\n";
  }
  drawn_ = absl::Now();
  drawn_any_ = true;
}

void ProgressBar::Message(const std::string& text) {
  if (tty_ && drawn_any_) std::cerr << "\r\033[K";
  std::cerr << TerminalSafe(text) << "\n" << std::flush;
}

void ProgressBar::Finish() {
  if (!recent_.empty()) Draw(true);
}

}  // namespace mneme::cli
