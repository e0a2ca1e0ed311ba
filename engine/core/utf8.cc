#include "engine/core/utf8.h"

#include <cstring>

namespace mneme::engine {

using Kind = Utf8Character::Kind;

Utf8Character DecodeUtf8(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {Kind::kWhole, 1, lead};
  size_t size;
  char32_t code_point;
  uint8_t low = 0x80, high = 0xBF;  // of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    size = 2;
    code_point = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    size = 3;
    code_point = lead & 0x0F;
    if (lead == 0xE0) low = 0xA0;   // below: overlong
    if (lead == 0xED) high = 0x9F;  // above: surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    size = 4;
    code_point = lead & 0x07;
    if (lead == 0xF0) low = 0x90;   // below: overlong
    if (lead == 0xF4) high = 0x8F;  // above: beyond U+10FFFF
  } else {
    return {Kind::kInvalid, 1};
  }
  for (size_t i = 1; i < size; ++i) {
    if (i == bytes.size()) return {Kind::kUnfinished, i};
    if (at(i) < low || at(i) > high) return {Kind::kInvalid, i};
    code_point = code_point << 6 | (at(i) & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Kind::kWhole, size, code_point};
}

Utf8Character DecodeLastUtf8(std::string_view bytes) {
  size_t begin = bytes.size() - 1;
  while (begin > 0 && bytes.size() - begin < 4 && IsUtf8Continuation(bytes[begin])) --begin;
  const Utf8Character last = DecodeUtf8(bytes.substr(begin));
  if (begin + last.size_bytes == bytes.size()) return last;
  return {Kind::kInvalid, 1};  // a continuation byte too many
}

size_t ValidUtf8Bytes(std::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size()) {
    if (bytes.size() - i >= 8) {  // most text is ASCII: eight bytes at a time
      uint64_t word;
      std::memcpy(&word, bytes.data() + i, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        i += 8;
        continue;
      }
    }
    const Utf8Character character = DecodeUtf8(bytes.substr(i));
    if (character.kind != Kind::kWhole) break;
    i += character.size_bytes;
  }
  return i;
}

size_t UnfinishedUtf8Bytes(std::string_view bytes) {
  if (bytes.empty()) return 0;
  const Utf8Character last = DecodeLastUtf8(bytes);
  return last.kind == Kind::kUnfinished ? last.size_bytes : 0;
}

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  std::string out;
  while (true) {
    const size_t valid = ValidUtf8Bytes(bytes);
    out.append(bytes.substr(0, valid));
    bytes.remove_prefix(valid);
    if (bytes.empty()) return out;
    AppendUtf8(0xFFFD, &out);
    bytes.remove_prefix(DecodeUtf8(bytes).size_bytes);
  }
}

void AppendUtf8(char32_t c, std::string* out) {
  const auto continuation = [&](int shift) {
    out->push_back(static_cast<char>(0x80 | (c >> shift & 0x3F)));
  };
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | c >> 6));
    continuation(0);
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | c >> 12));
    continuation(6);
    continuation(0);
  } else {
    out->push_back(static_cast<char>(0xF0 | c >> 18));
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

}  // namespace mneme::engine
