// Rows of an embedding table as f32.
#pragma once

#include <cstdint>
#include <span>

#include "engine/core/dtype.h"

namespace mneme::engine {

class Exec;

// y[t, :] = table[rows[t], :], dequantised exactly. table [V, D]; y [T, D] contiguous. Every row id
// is in [0, V): the caller checks. Identical bits on every backend.
using EmbedRowsFn = void (*)(Exec& exec, const Weight& table, std::span<const int32_t> rows,
                             float* y);

}  // namespace mneme::engine
