#include "engine/device/weight_store.h"

#include <cstring>

#include "engine/kernels/raw.h"

namespace mneme::engine {

const float* WeightStore::Add(std::span<const float> values) {
  AlignedBuffer& block = blocks_.emplace_back(values.size_bytes());
  if (!values.empty()) std::memcpy(block.data(), values.data(), values.size_bytes());
  return block.as<float>();
}

Vector WeightStore::Place(std::span<const float> values) {
  return VectorAt(Add(values), static_cast<int64_t>(values.size()));
}

Matrix WeightStore::PlaceMatrix(std::span<const float> values, int64_t rows, int64_t columns) {
  return MatrixAt({DType::kF32, rows, columns, reinterpret_cast<const std::byte*>(Add(values))});
}

Matrix WeightStore::Map(const Weight& weight) const { return MatrixAt(weight); }

}  // namespace mneme::engine
