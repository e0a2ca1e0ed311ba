// Searches stored weights for NaN and infinity.
#pragma once

#include <cstddef>
#include <span>

#include "engine/core/dtype.h"

namespace mneme::engine {

// True if no value of `bytes` (whole blocks of `dtype`, unaligned) is NaN or infinite. For block
// types the scales and minima decide: the integers beside them cannot be. Memory-bound.
bool AllFinite(DType dtype, std::span<const std::byte> bytes);

}  // namespace mneme::engine
