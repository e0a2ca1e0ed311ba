#include "tests/engine/kernels/random_operands.h"

#include <cstring>

#include "engine/core/half.h"
#include "engine/kernels/dequantize.h"

namespace mneme::engine {

std::vector<float> Random::Floats(size_t n) {
  std::vector<float> out(n);
  for (float& x : out) x = Unit();
  return out;
}

TestWeight::TestWeight(DType dtype, int64_t rows, int64_t columns, uint32_t seed, size_t misalign) {
  Random random(seed);
  view_ = {dtype, rows, columns, nullptr};
  bytes_.resize(view_.size_bytes() + misalign);
  std::byte* data = bytes_.data() + misalign;
  view_.data = data;
  const DTypeTraits& traits = Traits(dtype);
  for (size_t i = 0; i < view_.size_bytes(); ++i) data[i] = static_cast<std::byte>(random.Bits());
  const auto put_half = [&](std::byte* at, float value) {
    const uint16_t bits = FloatToHalf(value);
    std::memcpy(at, &bits, 2);
  };
  for (int64_t i = 0; i < rows * columns / traits.block_elements; ++i) {
    std::byte* block = data + i * traits.block_bytes;
    const float scale = random.Unit() * 0.01f;
    const float min = random.Unit() * 0.05f;
    switch (dtype) {
      case DType::kF32: {
        const float value = random.Unit();
        std::memcpy(block, &value, 4);
        break;
      }
      case DType::kF16:
        put_half(block, random.Unit());
        break;
      case DType::kBF16: {
        const float value = random.Unit();
        std::memcpy(block, reinterpret_cast<const std::byte*>(&value) + 2, 2);
        break;
      }
      case DType::kQ4_1:
      case DType::kQ5_1:
        put_half(block, scale);
        put_half(block + 2, min);
        break;
      case DType::kQ4_K:
      case DType::kQ5_K:
        put_half(block, scale * 0.05f);
        put_half(block + 2, min * 0.05f);
        break;
      case DType::kQ6_K:
        put_half(block + 208, scale * 0.02f);
        break;
      case DType::kQ8_0:
      case DType::kQ4_0:
      case DType::kQ5_0:
        put_half(block, scale);
        break;
    }
  }
}

std::vector<float> TestWeight::Dequantized() const {
  std::vector<float> out(view_.rows * view_.columns);
  for (int64_t n = 0; n < view_.rows; ++n) {
    DequantizeRow(view_.dtype, view_.data + n * view_.row_bytes(), view_.columns,
                  out.data() + n * view_.columns);
  }
  return out;
}

}  // namespace mneme::engine
