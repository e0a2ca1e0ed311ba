// Element types of weights and states, and the size of their blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace mneme::engine {

// Values are our own and appear in state snapshots: never renumber.
enum class DType : uint8_t {
  kF32 = 0,
  kF16 = 1,
  kBF16 = 2,
  kQ8_0 = 3,
  kQ4_0 = 4,
  kQ4_1 = 5,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ4_K = 8,
  kQ5_K = 9,
  kQ6_K = 10,
};
inline constexpr int kNumDTypes = 11;

struct DTypeTraits {
  std::string_view name;  // as GGUF spells it: "F32", "Q4_1", "Q4_K"
  int block_elements;     // 1 for the float types
  int block_bytes;
};

const DTypeTraits& Traits(DType dtype);
bool IsQuantized(DType dtype);
std::optional<DType> DTypeFromName(std::string_view name);

// Bytes of a row of `columns` elements; `columns` must be a multiple of the block.
size_t RowBytes(DType dtype, int64_t columns);

// A weight matrix as stored: `rows` outputs of `columns` inputs each (y = W x), row-major, rows
// contiguous. Does not own `data`; `data` may be unaligned (it points into a mapped file).
struct Weight {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  const std::byte* data = nullptr;

  size_t row_bytes() const { return RowBytes(dtype, columns); }
  size_t size_bytes() const { return row_bytes() * rows; }
};

}  // namespace mneme::engine
