// Whether encoded floats are numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/core/dtype.h"

namespace mneme::engine {

// Exponent all ones: infinity or NaN. Reads through memcpy: chunk bytes are not aligned.
inline bool AllFinite(const char* bytes, size_t size, DType dtype) {
  if (dtype == DType::kF32) {
    uint32_t bad = 0;
    for (size_t i = 0; i + 4 <= size; i += 4) {
      uint32_t u;
      std::memcpy(&u, bytes + i, 4);
      bad |= (u & 0x7F800000u) == 0x7F800000u;
    }
    return bad == 0;
  }
  uint32_t bad = 0;
  for (size_t i = 0; i + 2 <= size; i += 2) {
    uint16_t u;
    std::memcpy(&u, bytes + i, 2);
    bad |= (u & 0x7C00u) == 0x7C00u;
  }
  return bad == 0;
}

}  // namespace mneme::engine
