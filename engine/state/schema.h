// What one sequence carries between tokens: an ordered list of tensors in one block of fixed size.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/core/dtype.h"
#include "engine/core/rows.h"
#include "engine/device/memory.h"

namespace mneme::engine {

// How many rows of a tensor mean something, and in which order (docs/state_format.md).
enum class StateKind : uint8_t {
  kFixed = 0,  // the whole tensor always
  // Rows per token: the first `sinks` rows hold positions 0..sinks-1; row sinks + (j - sinks) %
  // window holds position j >= sinks. After n tokens, rows of positions < min(n, sinks) and of the
  // last min(n - sinks, window) positions are valid. A row, once written, never changes until it is
  // overwritten by position j + window.
  kRing = 1,
};

struct StateTensor {
  int32_t layer = 0;           // -1: of the whole model
  std::string name;            // "k", "v", ...
  DType dtype = DType::kF32;   // kF32 or kF16
  std::vector<int64_t> shape;  // kRing: the first dimension is sinks + window
  StateKind kind = StateKind::kFixed;
  int64_t sinks = 0;   // kRing only
  int64_t window = 0;  // kRing only

  // Derived by StateSchema:
  size_t offset_bytes = 0;  // multiple of kBlockAlignment
  size_t size_bytes = 0;

  int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  size_t row_bytes() const { return rows() == 0 ? 0 : size_bytes / rows(); }
};

// Immutable once built. Computed from the config, so it is known before any token is read.
class StateSchema {
 public:
  StateSchema() = default;
  // Lays the tensors out in order. Sizes must fit in 2^62 bytes.
  explicit StateSchema(std::vector<StateTensor> tensors);

  const std::vector<StateTensor>& tensors() const { return tensors_; }
  size_t size_bytes() const {
    return size_bytes_;
  }  // of the block; constant for the life of a session
  // SHA-256 of a canonical description: two schemas with equal hashes lay out equal blocks.
  const std::string& hash() const { return hash_; }
  const StateTensor* Find(int32_t layer, std::string_view name) const;
  // For kernels: where tensor `index` lies.
  StateField Field(int64_t index) const {
    const StateTensor& tensor = tensors_[index];
    return {static_cast<int64_t>(tensor.offset_bytes), tensor.dtype};
  }

 private:
  std::vector<StateTensor> tensors_;
  size_t size_bytes_ = 0;
  std::string hash_;
};

// One sequence's state: the block and how many tokens it has read. Movable; copying is explicit.
struct State {
  Block block;
  int64_t position = 0;  // tokens fed since the start

  State Clone() const;
};

}  // namespace mneme::engine
