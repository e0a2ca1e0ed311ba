// Through the opaque addresses of engine/core/rows.h. For devices, kernels and their tests;
// include_direction_test holds that no architecture includes this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/core/rows.h"

namespace mneme::engine {

inline float* Raw(const Rows& rows) { return rows.at_; }
inline const float* Raw(const Vector& vector) { return vector.at_; }
inline const Weight& Raw(const Matrix& matrix) { return matrix.weight_; }
inline std::byte* Raw(const StateSlot& slot) { return slot.at_; }
// In the order of positions.
inline std::byte* const* RawPages(const StateSlot& slot) { return slot.pages_; }
// Null if there is no such tensor.
inline std::byte* Raw(const StateSlot& slot, const StateField& field) {
  return field ? Raw(slot) + field.offset_bytes : nullptr;
}
inline float* RawFloats(const StateSlot& slot, const StateField& field) {
  return reinterpret_cast<float*>(Raw(slot, field));
}

// Contiguous.
inline Rows RowsAt(float* at, int64_t count, int64_t width) { return {at, count, width, width}; }
inline Vector VectorAt(const float* at, int64_t size) { return {at, size}; }
inline Matrix MatrixAt(const Weight& weight) { return Matrix(weight); }
inline StateSlot SlotAt(std::byte* at, std::byte* const* pages = nullptr) { return {at, pages}; }

}  // namespace mneme::engine
