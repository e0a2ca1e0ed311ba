// CRC-32C (Castagnoli, RFC 3720) of the token ids that a stream has brought. So few bytes need no
// table, and a client no library for them. Internal to the library.
#pragma once

#include <cstdint>

namespace mneme::client {

// Of what `crc` is of and then `id`, as four bytes, little-endian. 0 is that of nothing.
inline uint32_t ExtendCrc32c(uint32_t crc, int32_t id) {
  crc = ~crc ^ static_cast<uint32_t>(id);
  for (int bit = 0; bit < 32; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0u);
  return ~crc;
}

}  // namespace mneme::client
