// Whole characters out of tokens that may end inside one.
#pragma once

#include <string>
#include <string_view>

namespace mneme::server {

// Turns the bytes of tokens into whole UTF-8: a character that spans tokens appears when it is
// complete; bytes that can never become one appear as U+FFFD.
class Utf8Stream {
 public:
  // Text that is complete now.
  std::string Feed(std::string_view bytes);
  // U+FFFD for an unfinished character, if there is one.
  std::string Flush();
  bool pending() const { return !held_.empty(); }

 private:
  std::string held_;  // at most 3 bytes
};

}  // namespace mneme::server
