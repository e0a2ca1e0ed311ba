#include "engine/device/weight_store.h"

#include "engine/device/raw.h"

namespace mneme::engine {

const float* WeightStore::Add(std::span<const float> values) {
  Block& block = blocks_.emplace_back(memory_->Allocate(values.size_bytes()));
  memory_->Write(block, 0, std::as_bytes(values));
  return reinterpret_cast<const float*>(block.address());
}

Vector WeightStore::Place(std::span<const float> values) {
  return VectorAt(Add(values), static_cast<int64_t>(values.size()));
}

Matrix WeightStore::PlaceMatrix(std::span<const float> values, int64_t rows, int64_t columns) {
  return MatrixAt({DType::kF32, rows, columns, reinterpret_cast<const std::byte*>(Add(values))});
}

Matrix WeightStore::Map(Weight weight) {
  Block copy;
  weight.data = memory_->Map({weight.data, weight.size_bytes()}, copy);
  if (copy) blocks_.push_back(std::move(copy));
  return MatrixAt(weight);
}

}  // namespace mneme::engine
