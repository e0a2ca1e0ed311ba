// Where numbers lie in a device's memory. Architectures cut these and hand them on; only kernels
// look through them (engine/device/raw.h).
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>

#include "engine/core/dtype.h"

namespace mneme::engine {

// Activations: f32 [count, width], rows `stride` elements apart. Owns nothing.
class Rows {
 public:
  Rows() = default;

  int64_t count() const { return count_; }
  int64_t width() const { return width_; }
  int64_t stride() const { return stride_; }
  int64_t elements() const { return count_ * width_; }
  bool contiguous() const { return stride_ == width_ || count_ <= 1; }
  explicit operator bool() const { return at_ != nullptr; }

  Rows Slice(int64_t first, int64_t count) const {
    assert(first >= 0 && count >= 0 && first + count <= count_);
    return {at_ + first * stride_, count, width_, stride_};
  }
  Rows Columns(int64_t first, int64_t width) const {
    assert(first >= 0 && width >= 0 && first + width <= width_);
    return {at_ + first, count_, width, stride_};
  }
  // The same numbers as `parts` rows each.
  Rows Split(int64_t parts) const {
    assert(contiguous() && width_ % parts == 0);
    return {at_, count_ * parts, width_ / parts, width_ / parts};
  }
  // The first numbers of contiguous rows as rows of another width.
  Rows Reshape(int64_t count, int64_t width) const {
    assert(contiguous() && count * width <= elements());
    return {at_, count, width, width};
  }

 private:
  Rows(float* at, int64_t count, int64_t width, int64_t stride)
      : at_(at), count_(count), width_(width), stride_(stride) {}
  friend float* Raw(const Rows& rows);
  friend Rows RowsAt(float* at, int64_t count, int64_t width);

  float* at_ = nullptr;
  int64_t count_ = 0;
  int64_t width_ = 0;
  int64_t stride_ = 0;
};

// Parameters that are used as f32: norms, biases, gates, taps.
class Vector {
 public:
  Vector() = default;

  int64_t size() const { return size_; }
  explicit operator bool() const { return at_ != nullptr; }

 private:
  Vector(const float* at, int64_t size) : at_(at), size_(size) {}
  friend const float* Raw(const Vector& vector);
  friend Vector VectorAt(const float* at, int64_t size);

  const float* at_ = nullptr;
  int64_t size_ = 0;
};

// A weight as stored: `rows` outputs of `columns` inputs each (y = W x).
class Matrix {
 public:
  Matrix() = default;

  DType dtype() const { return weight_.dtype; }
  int64_t rows() const { return weight_.rows; }
  int64_t columns() const { return weight_.columns; }
  size_t row_bytes() const { return weight_.row_bytes(); }
  size_t size_bytes() const { return weight_.size_bytes(); }
  explicit operator bool() const { return weight_.data != nullptr; }

 private:
  explicit Matrix(const Weight& weight) : weight_(weight) {}
  friend const Weight& Raw(const Matrix& matrix);
  friend Matrix MatrixAt(const Weight& weight);

  Weight weight_;
};

// Positions of one page of a state that grows (engine/state/schema.h); a multiple of the keys that
// attention visits at once.
inline constexpr int64_t kPageTokens = 64;

// The block of one sequence's state, and its pages if it grows.
class StateSlot {
 public:
  StateSlot() = default;

 private:
  StateSlot(std::byte* at, std::byte* const* pages) : at_(at), pages_(pages) {}
  friend std::byte* Raw(const StateSlot& slot);
  friend std::byte* const* RawPages(const StateSlot& slot);
  friend StateSlot SlotAt(std::byte* at, std::byte* const* pages);

  std::byte* at_ = nullptr;
  std::byte* const* pages_ = nullptr;
};

// Where a tensor lies in every state of a model.
struct StateField {
  int64_t offset_bytes = -1;  // -1: this model has no such tensor
  DType dtype = DType::kF32;
  bool paged = false;  // then it lies there in every page, kPageTokens rows of it

  explicit operator bool() const { return offset_bytes >= 0; }
};

}  // namespace mneme::engine
