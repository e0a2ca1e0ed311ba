// Loaded weights as numbers.
#pragma once

#include <vector>

#include "engine/device/raw.h"
#include "engine/kernels/dequantize.h"

namespace mneme::engine {

inline std::vector<float> Values(const Vector& vector) {
  return {Raw(vector), Raw(vector) + vector.size()};
}

inline std::vector<float> Values(const Matrix& matrix) {
  std::vector<float> values(matrix.rows() * matrix.columns());
  DequantizeRow(matrix.dtype(), Raw(matrix).data, static_cast<int64_t>(values.size()),
                values.data());
  return values;
}

}  // namespace mneme::engine
