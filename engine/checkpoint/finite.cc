#include "engine/checkpoint/finite.h"

#include <cstdint>
#include <cstring>

namespace mneme::engine {
namespace {

// All exponent bits set means infinite or NaN. Branch-free, so that it vectorises.
template <typename Bits, Bits kExponent>
bool AllFiniteAt(std::span<const std::byte> bytes, size_t first, size_t stride) {
  uint32_t num_bad = 0;
  for (size_t i = first; i + sizeof(Bits) <= bytes.size(); i += stride) {
    Bits bits;
    std::memcpy(&bits, bytes.data() + i, sizeof(Bits));
    num_bad |= (bits & kExponent) == kExponent;
  }
  return num_bad == 0;
}

bool AllFiniteHalf(std::span<const std::byte> bytes, size_t first, size_t stride) {
  return AllFiniteAt<uint16_t, 0x7C00>(bytes, first, stride);
}

}  // namespace

bool AllFinite(DType dtype, std::span<const std::byte> bytes) {
  const size_t block = Traits(dtype).block_bytes;
  switch (dtype) {
    case DType::kF32:
      return AllFiniteAt<uint32_t, 0x7F800000>(bytes, 0, 4);
    case DType::kF16:
      return AllFiniteHalf(bytes, 0, 2);
    case DType::kBF16:
      return AllFiniteAt<uint16_t, 0x7F80>(bytes, 0, 2);
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ5_0:
      return AllFiniteHalf(bytes, 0, block);
    case DType::kQ4_1:  // scale and minimum
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return AllFiniteHalf(bytes, 0, block) && AllFiniteHalf(bytes, 2, block);
    case DType::kQ6_K:  // the scale comes last
      return AllFiniteHalf(bytes, block - 2, block);
  }
  return false;
}

}  // namespace mneme::engine
