#include "engine/kernels/dequantize.h"

#include <cassert>
#include <cstring>

#include "engine/core/half.h"

namespace mneme::engine {
namespace {

uint16_t Load16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

uint32_t Load32(const uint8_t* p) {
  uint32_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

float LoadHalf(const uint8_t* p) { return HalfToFloat(Load16(p)); }

// Low nibbles are elements 0-15, high nibbles elements 16-31.
void UnpackNibbles16(const uint8_t* qs, uint8_t* code) {
  for (int i = 0; i < 16; ++i) {
    code[i] = qs[i] & 15;
    code[i + 16] = qs[i] >> 4;
  }
}

void AddFifthBits(uint32_t high, uint8_t* code) {
  for (int e = 0; e < 32; ++e) code[e] |= ((high >> e) & 1) << 4;
}

void SetScale(CodeBlock* out, float scale) { out->scale[0] = out->scale[1] = scale; }

// The eight 6-bit (scale, minimum) pairs that Q4_K and Q5_K pack into twelve bytes.
void KScale(const uint8_t* packed, int s, int* scale, int* min) {
  if (s < 4) {
    *scale = packed[s] & 63;
    *min = packed[s + 4] & 63;
  } else {
    *scale = (packed[s + 4] & 15) | ((packed[s - 4] >> 6) << 4);
    *min = (packed[s + 4] >> 4) | ((packed[s] >> 6) << 4);
  }
}

void UnpackK4or5(const uint8_t* block, int s, bool fifth_bit, CodeBlock* out) {
  int scale, min;
  KScale(block + 4, s, &scale, &min);
  SetScale(out, LoadHalf(block) * static_cast<float>(scale));
  out->min = -(LoadHalf(block + 2) * static_cast<float>(min));
  const uint8_t* qh = block + 16;
  const uint8_t* qs = block + (fifth_bit ? 48 : 16) + 32 * (s / 2);
  for (int i = 0; i < 32; ++i) {
    uint8_t code = (s % 2 == 0) ? (qs[i] & 15) : (qs[i] >> 4);
    if (fifth_bit) code |= ((qh[i] >> s) & 1) << 4;
    out->code[i] = code;
  }
}

void UnpackQ6K(const uint8_t* block, int s, CodeBlock* out) {
  const int half = s / 4;  // 128 elements each
  const int k = s % 4;
  const uint8_t* ql = block + 64 * half + 32 * (k % 2);
  const uint8_t* qh = block + 128 + 32 * half;
  const uint8_t* scales = block + 192 + 2 * s;
  const float d = LoadHalf(block + 208);
  for (int i = 0; i < 2; ++i) {
    out->scale[i] = d * static_cast<float>(static_cast<int8_t>(scales[i]));
  }
  out->min = 0;
  for (int i = 0; i < 32; ++i) {
    const uint8_t low = (k / 2 == 0) ? (ql[i] & 15) : (ql[i] >> 4);
    out->code[i] = low | (((qh[i] >> (2 * k)) & 3) << 4);
  }
}

}  // namespace

int CodeOffset(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return 128;
    case DType::kQ4_0:
      return 8;
    case DType::kQ5_0:
      return 16;
    case DType::kQ6_K:
      return 32;
    default:
      return 0;
  }
}

bool HasMin(DType dtype) { return IsQuantized(dtype) && CodeOffset(dtype) == 0; }

void UnpackCodes(DType dtype, const std::byte* row, int64_t index, CodeBlock* out) {
  const DTypeTraits& traits = Traits(dtype);
  const int pieces = traits.block_elements / static_cast<int>(kCodeBlock);
  const uint8_t* block =
      reinterpret_cast<const uint8_t*>(row) + (index / pieces) * traits.block_bytes;
  out->min = 0;
  switch (dtype) {
    case DType::kQ8_0:
      SetScale(out, LoadHalf(block));
      for (int i = 0; i < 32; ++i) out->code[i] = block[2 + i] ^ 0x80;
      return;
    case DType::kQ4_0:
      SetScale(out, LoadHalf(block));
      UnpackNibbles16(block + 2, out->code);
      return;
    case DType::kQ4_1:
      SetScale(out, LoadHalf(block));
      out->min = LoadHalf(block + 2);
      UnpackNibbles16(block + 4, out->code);
      return;
    case DType::kQ5_0:
      SetScale(out, LoadHalf(block));
      UnpackNibbles16(block + 6, out->code);
      AddFifthBits(Load32(block + 2), out->code);
      return;
    case DType::kQ5_1:
      SetScale(out, LoadHalf(block));
      out->min = LoadHalf(block + 2);
      UnpackNibbles16(block + 8, out->code);
      AddFifthBits(Load32(block + 4), out->code);
      return;
    case DType::kQ4_K:
      UnpackK4or5(block, static_cast<int>(index % 8), false, out);
      return;
    case DType::kQ5_K:
      UnpackK4or5(block, static_cast<int>(index % 8), true, out);
      return;
    case DType::kQ6_K:
      UnpackQ6K(block, static_cast<int>(index % 8), out);
      return;
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      break;
  }
  assert(false && "UnpackCodes wants a quantised type");
}

void DequantizeRow(DType dtype, const std::byte* row, int64_t columns, float* out) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(row);
  if (dtype == DType::kF32) {
    std::memcpy(out, bytes, columns * sizeof(float));
    return;
  }
  if (dtype == DType::kF16) {
    for (int64_t k = 0; k < columns; ++k) out[k] = HalfToFloat(Load16(bytes + 2 * k));
    return;
  }
  if (dtype == DType::kBF16) {
    for (int64_t k = 0; k < columns; ++k) out[k] = BFloat16ToFloat(Load16(bytes + 2 * k));
    return;
  }
  const int offset = CodeOffset(dtype);
  const bool has_min = HasMin(dtype);
  CodeBlock block;
  for (int64_t index = 0; index * kCodeBlock < columns; ++index) {
    UnpackCodes(dtype, row, index, &block);
    float* to = out + index * kCodeBlock;
    for (int e = 0; e < kCodeBlock; ++e) {
      to[e] = block.scale[e / 16] * static_cast<float>(block.code[e] - offset);
    }
    // Only where the format has one: adding zero would turn -0 into +0.
    if (has_min) {
      for (int e = 0; e < kCodeBlock; ++e) to[e] += block.min;
    }
  }
}

}  // namespace mneme::engine
