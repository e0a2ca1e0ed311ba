// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mneme::engine {

bool IsValidUtf8(std::string_view text);

// Bytes of the sequence that starts with `lead`, which must be a lead byte of valid UTF-8.
inline size_t Utf8Length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// The code point at `offset` of valid UTF-8; `offset` is at a lead byte.
char32_t DecodeUtf8(std::string_view text, size_t offset);

void AppendUtf8(char32_t code_point, std::string* out);

// How many bytes at the end of `text` start a sequence that is not complete yet (0 to 3).
size_t IncompleteUtf8Tail(std::string_view text);

// Unicode property White_Space.
bool IsWhiteSpace(char32_t code_point);

}  // namespace mneme::engine
