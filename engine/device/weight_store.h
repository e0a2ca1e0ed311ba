// Parameters that a model does not use where its file has them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/core/rows.h"
#include "engine/device/memory.h"

namespace mneme::engine {

// Owns what it was given. Moving it keeps addresses valid; matrices in a mapped file must be
// outlived by the mapping.
class WeightStore {
 public:
  WeightStore() = default;  // of no model
  explicit WeightStore(Memory& memory) : memory_(&memory) {}

  Memory& memory() const { return *memory_; }
  Vector Place(std::span<const float> values);
  // f32 [rows, columns].
  Matrix PlaceMatrix(std::span<const float> values, int64_t rows, int64_t columns);
  // A file's matrix: where it lies, if kernels can read it there.
  Matrix Map(Weight weight);

 private:
  const float* Add(std::span<const float> values);

  Memory* memory_ = nullptr;
  std::vector<Block> blocks_;
};

}  // namespace mneme::engine
