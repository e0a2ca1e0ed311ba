// UTF-8 as RFC 3629 has it. Internal: the client is built on proto alone, so it cannot use the
// engine's; a test holds that both find the same characters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mneme::client {

// Bytes of the whole character at the start of `bytes`; 0 if there is none.
inline size_t Utf8CharacterBytes(std::string_view bytes) {
  if (bytes.empty()) return 0;
  const auto lead = static_cast<uint8_t>(bytes[0]);
  if (lead < 0x80) return 1;
  const size_t size = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (size == 0 || size > bytes.size()) return 0;
  for (size_t i = 1; i < size; ++i) {
    if ((static_cast<uint8_t>(bytes[i]) & 0xC0) != 0x80) return 0;
  }
  const auto second = static_cast<uint8_t>(bytes[1]);
  const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
  const bool surrogate = lead == 0xED && second > 0x9F;
  const bool beyond = lead == 0xF4 && second > 0x8F;
  return overlong || surrogate || beyond ? 0 : size;
}

}  // namespace mneme::client
