// Parameters that a model does not use where its file has them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/core/aligned_buffer.h"
#include "engine/core/rows.h"

namespace mneme::engine {

// Owns what it was given. Moving it keeps addresses valid; matrices in a mapped file must be
// outlived by the mapping.
class WeightStore {
 public:
  Vector Place(std::span<const float> values);
  // f32 [rows, columns].
  Matrix PlaceMatrix(std::span<const float> values, int64_t rows, int64_t columns);
  // Where it lies.
  Matrix Map(const Weight& weight) const;

 private:
  const float* Add(std::span<const float> values);

  std::vector<AlignedBuffer> blocks_;
};

}  // namespace mneme::engine
