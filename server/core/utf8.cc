#include "server/core/utf8.h"

#include <cstdint>

namespace mneme::server {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Length of the sequence at the start of `s`; 0 if it is invalid, -1 if it is unfinished.
int SequenceLength(std::string_view s) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(s[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return 1;
  int length;
  uint8_t low = 0x80, high = 0xBF;  // of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= s.size()) return -1;
    if (at(i) < low || at(i) > high) return 0;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

}  // namespace

Utf8Scan ScanUtf8(std::string_view bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    const int length = SequenceLength(bytes.substr(at));
    if (length <= 0) return {at, length < 0};
    at += length;
  }
  return {at, false};
}

std::string Utf8Stream::Feed(std::string_view bytes) {
  held_.append(bytes);
  std::string out;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const Utf8Scan scan = ScanUtf8(rest);
    out.append(rest.substr(0, scan.valid_bytes));
    rest.remove_prefix(scan.valid_bytes);
    if (rest.empty() || scan.incomplete) break;
    out.append(kReplacement);
    rest.remove_prefix(1);
  }
  held_ = std::string(rest);
  return out;
}

std::string Utf8Stream::Flush() {
  if (held_.empty()) return "";
  held_.clear();
  return std::string(kReplacement);
}

}  // namespace mneme::server
