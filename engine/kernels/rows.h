// Rows moved from one place to another: activations among themselves, and into a state in the type
// that it keeps; and rows looked over for what is not a number. Same bits on every backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/core/dtype.h"

namespace mneme::engine {

class Exec;

struct CopyRowsArgs {
  const float* from = nullptr;  // [rows, width]
  int64_t from_stride = 0;      // 0 repeats one row
  float* to = nullptr;          // [rows, width]; aliases no `from` of the call
  int64_t to_stride = 0;
  int64_t rows = 0;
  int64_t width = 0;
};

using CopyRowsFn = void (*)(Exec& exec, std::span<const CopyRowsArgs> batch);

struct StoreRowsArgs {
  const float* x = nullptr;  // [rows, width]
  int64_t x_stride = 0;
  int64_t rows = 0;
  int64_t width = 0;
  DType dtype = DType::kF16;  // kF16 or kF32
  std::byte* to = nullptr;    // [rows, width], contiguous: x rounded to `dtype`
};

using StoreRowsFn = void (*)(Exec& exec, std::span<const StoreRowsArgs> batch);

// finite[t] = 1 if every number of row t of x [T, width] is one, 0 if there is a NaN or an
// infinity.
using FiniteRowsFn = void (*)(Exec& exec, const float* x, int64_t T, int64_t width,
                              uint8_t* finite);

}  // namespace mneme::engine
