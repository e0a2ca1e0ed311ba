// UTF-8: checking what comes in, and holding back unfinished sequences of what goes out.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mneme::server {

struct Utf8Scan {
  size_t valid_bytes = 0;  // length of the longest prefix of whole, valid sequences
  bool incomplete =
      false;  // the rest is the beginning of a valid sequence: more bytes may finish it
};
// A sequence is valid as in RFC 3629: shortest form, no surrogates, up to U+10FFFF.
Utf8Scan ScanUtf8(std::string_view bytes);
inline bool IsValidUtf8(std::string_view bytes) {
  return ScanUtf8(bytes).valid_bytes == bytes.size();
}

// Turns the bytes of tokens into whole UTF-8: a sequence that spans tokens appears when it is
// complete; bytes that can never become valid appear as U+FFFD.
class Utf8Stream {
 public:
  // Text that is complete now.
  std::string Feed(std::string_view bytes);
  // U+FFFD for an unfinished sequence, if there is one.
  std::string Flush();
  bool pending() const { return !held_.empty(); }

 private:
  std::string held_;  // at most 3 bytes
};

}  // namespace mneme::server
