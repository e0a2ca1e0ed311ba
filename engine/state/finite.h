// Whether encoded floats are numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/core/dtype.h"

namespace mneme::engine {

// Exponent all ones: infinity or NaN. Reads through memcpy: chunk bytes are not aligned.
template <typename Bits>
bool AllFinite(const char* bytes, size_t size, Bits exponent) {
  Bits bad = 0;
  for (size_t i = 0; i + sizeof(Bits) <= size; i += sizeof(Bits)) {
    Bits u;
    std::memcpy(&u, bytes + i, sizeof(u));
    bad |= (u & exponent) == exponent;
  }
  return bad == 0;
}

inline bool AllFinite(const char* bytes, size_t size, DType dtype) {
  return dtype == DType::kF32 ? AllFinite<uint32_t>(bytes, size, 0x7F800000u)
                              : AllFinite<uint16_t>(bytes, size, 0x7C00u);
}

}  // namespace mneme::engine
