#include "engine/tokenizer/utf8.h"

#include <algorithm>
#include <cstring>

namespace mneme::engine {

bool IsValidUtf8(std::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const auto* end = p + text.size();
  auto continues = [](unsigned char byte) { return (byte & 0xC0) == 0x80; };
  while (p < end) {
    if (end - p >= 8) {  // most text is ASCII: eight bytes at a time
      uint64_t word;
      std::memcpy(&word, p, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        p += 8;
        continue;
      }
    }
    const unsigned char lead = *p;
    if (lead < 0x80) {
      ++p;
    } else if (lead < 0xC2) {  // a continuation byte, or an overlong two-byte form
      return false;
    } else if (lead < 0xE0) {
      if (end - p < 2 || !continues(p[1])) return false;
      p += 2;
    } else if (lead < 0xF0) {
      if (end - p < 3 || !continues(p[1]) || !continues(p[2])) return false;
      if (lead == 0xE0 && p[1] < 0xA0) return false;  // overlong
      if (lead == 0xED && p[1] > 0x9F) return false;  // surrogates
      p += 3;
    } else if (lead < 0xF5) {
      if (end - p < 4 || !continues(p[1]) || !continues(p[2]) || !continues(p[3])) return false;
      if (lead == 0xF0 && p[1] < 0x90) return false;  // overlong
      if (lead == 0xF4 && p[1] > 0x8F) return false;  // above U+10FFFF
      p += 4;
    } else {
      return false;
    }
  }
  return true;
}

char32_t DecodeUtf8(std::string_view text, size_t offset) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data()) + offset;
  switch (Utf8Length(text[offset])) {
    case 1:
      return p[0];
    case 2:
      return (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
    case 3:
      return (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    default:
      return (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
  }
}

void AppendUtf8(char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | c >> 6));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | c >> 12));
    out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | c >> 18));
    out->push_back(static_cast<char>(0x80 | (c >> 12 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

size_t IncompleteUtf8Tail(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    return byte >= 0xC2 && byte < 0xF5 && Utf8Length(static_cast<char>(byte)) > back ? back : 0;
  }
  return 0;
}

bool IsWhiteSpace(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace mneme::engine
