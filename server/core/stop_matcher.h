// Finds stop sequences in streamed text and holds back what may become one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::server {

// Of several matches the one that ends first counts, then the one that starts first; so the result
// does not depend on how the text was cut. Sequences are not empty.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> sequences) : sequences_(std::move(sequences)) {}

  // Appends `text` and returns what can be released now. After a match everything before it has
  // been released and nothing more ever is.
  std::string Feed(std::string_view text);
  // What was held back, if there was no match.
  std::string Flush();

  // Offset in the whole text at which the match begins.
  std::optional<int64_t> match() const { return match_; }
  int64_t released_bytes() const { return released_; }

 private:
  std::string Release(size_t bytes);

  const std::vector<std::string> sequences_;
  std::string held_;
  int64_t released_ = 0;
  std::optional<int64_t> match_;
};

}  // namespace mneme::server
