// Scalar readers of the stored weight types: rows as f32, and quantised blocks as integer codes.
//
// These define what a stored weight means; every kernel agrees with them bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/core/dtype.h"

namespace mneme::engine {

// Every quantised type, seen in pieces of 32 elements:
//   element e = scale[e / 16] * (code[e] - CodeOffset(dtype)) (+ min, if HasMin(dtype))
// scale and min are the rounded f32 products the format prescribes (d * sc, -(dmin * mn)); the
// element is one rounded product and one rounded sum.
struct CodeBlock {
  uint8_t code[32];
  float scale[2];  // equal except for Q6_K, whose scales cover 16 elements
  float min;       // 0 if the type has none
};

inline constexpr int64_t kCodeBlock = 32;

// Added to a signed code to make it unsigned: 8, 16, 32 or 128, and 0 for types with a minimum.
int CodeOffset(DType dtype);
bool HasMin(DType dtype);

// Piece `index` (elements 32 * index ...) of a row. `row` may be unaligned. Quantised types only.
void UnpackCodes(DType dtype, const std::byte* row, int64_t index, CodeBlock* out);

// out[0, columns) = the row's elements in f32. `row` may be unaligned. Any type.
void DequantizeRow(DType dtype, const std::byte* row, int64_t columns, float* out);

}  // namespace mneme::engine
