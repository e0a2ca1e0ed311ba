// CRC-32C (Castagnoli, RFC 3720) through isa-l.
#pragma once

#include <isa-l/crc.h>

#include <cstdint>
#include <string_view>

namespace mneme::engine {

inline uint32_t Crc32c(std::string_view bytes) {
  // isa-l neither inverts at the start nor at the end; RFC 3720 does both. It takes a mutable
  // pointer but does not write.
  return ~crc32_iscsi(reinterpret_cast<unsigned char*>(const_cast<char*>(bytes.data())),
                      static_cast<int>(bytes.size()), 0xFFFFFFFFu);
}

}  // namespace mneme::engine
