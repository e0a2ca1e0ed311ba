// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF. The one place
// where the engine and the server look at its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mneme::engine {

// What stands at one end of some bytes.
struct Utf8Character {
  enum class Kind : uint8_t {
    kWhole,
    kUnfinished,  // the bytes end inside a character: more may finish it
    kInvalid,
  };
  Kind kind;
  // Of the character; else of the longest beginning of one that is there, at least 1. Readers that
  // replace show all of it as one U+FFFD, as browsers and Python do.
  size_t size_bytes;
  char32_t code_point = 0;  // of a whole character
};
// The first character of `bytes`, which are not empty.
Utf8Character DecodeUtf8(std::string_view bytes);
// The last one.
Utf8Character DecodeLastUtf8(std::string_view bytes);

// Length of the longest prefix of whole characters.
size_t ValidUtf8Bytes(std::string_view bytes);
inline bool IsValidUtf8(std::string_view bytes) { return ValidUtf8Bytes(bytes) == bytes.size(); }

// How many bytes at the end begin a character that is not complete yet (0 to 3).
size_t UnfinishedUtf8Bytes(std::string_view bytes);

// Whether no character can begin at `byte`, in valid UTF-8.
inline bool IsUtf8Continuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

// `bytes` with U+FFFD for everything that is no whole character.
std::string ReplaceInvalidUtf8(std::string_view bytes);

// `code_point` is no surrogate and at most U+10FFFF.
void AppendUtf8(char32_t code_point, std::string* out);

}  // namespace mneme::engine
