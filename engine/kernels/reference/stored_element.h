// One number of a row of keys or values as a state stores it, kF16 or kF32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/core/dtype.h"
#include "engine/core/half.h"

namespace mneme::engine::reference {

inline float ReadElement(const std::byte* data, DType dtype, int64_t index) {
  if (dtype == DType::kF16) {
    uint16_t bits;
    std::memcpy(&bits, data + 2 * index, 2);
    return HalfToFloat(bits);
  }
  float value;
  std::memcpy(&value, data + 4 * index, 4);
  return value;
}

inline void WriteElement(float value, DType dtype, int64_t index, std::byte* data) {
  if (dtype == DType::kF16) {
    const uint16_t bits = FloatToHalf(value);
    std::memcpy(data + 2 * index, &bits, 2);
  } else {
    std::memcpy(data + 4 * index, &value, 4);
  }
}

// What comes back of a value that is written.
inline float RoundElement(float value, DType dtype) {
  return dtype == DType::kF16 ? HalfToFloat(FloatToHalf(value)) : value;
}

}  // namespace mneme::engine::reference
