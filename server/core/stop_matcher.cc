#include "server/core/stop_matcher.h"

#include <algorithm>

namespace mneme::server {

std::string StopMatcher::Release(size_t bytes) {
  std::string out = held_.substr(0, bytes);
  held_.erase(0, bytes);
  released_ += static_cast<int64_t>(bytes);
  return out;
}

std::string StopMatcher::Feed(std::string_view text) {
  if (match_.has_value()) return "";
  const size_t before = held_.size();
  held_.append(text);
  const std::string_view held = held_;
  for (size_t end = before + 1; end <= held.size(); ++end) {
    size_t longest = 0;
    for (const std::string& sequence : sequences_) {
      if (held.substr(0, end).ends_with(sequence)) longest = std::max(longest, sequence.size());
    }
    if (longest > 0) {
      const size_t start = end - longest;
      std::string out = Release(start);
      match_ = released_;
      held_.clear();
      return out;
    }
  }
  // The longest suffix that begins a sequence stays.
  size_t keep = 0;
  for (const std::string& sequence : sequences_) {
    for (size_t n = std::min(sequence.size() - 1, held.size()); n > keep; --n) {
      if (held.ends_with(std::string_view(sequence).substr(0, n))) keep = n;
    }
  }
  return Release(held.size() - keep);
}

std::string StopMatcher::Flush() { return match_.has_value() ? "" : Release(held_.size()); }

}  // namespace mneme::server
