#include "engine/core/dtype.h"

#include <array>

namespace mneme::engine {
namespace {
constexpr std::array<DTypeTraits, kNumDTypes> kTraits = {{
    {"F32", 1, 4},
    {"F16", 1, 2},
    {"BF16", 1, 2},
    {"Q8_0", 32, 34},
    {"Q4_0", 32, 18},
    {"Q4_1", 32, 20},
    {"Q5_0", 32, 22},
    {"Q5_1", 32, 24},
    {"Q4_K", 256, 144},
    {"Q5_K", 256, 176},
    {"Q6_K", 256, 210},
}};
}  // namespace

const DTypeTraits& Traits(DType dtype) { return kTraits[static_cast<size_t>(dtype)]; }

bool IsQuantized(DType dtype) { return Traits(dtype).block_elements > 1; }

std::optional<DType> DTypeFromName(std::string_view name) {
  for (int i = 0; i < kNumDTypes; ++i) {
    if (kTraits[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

size_t RowBytes(DType dtype, int64_t columns) {
  const DTypeTraits& traits = Traits(dtype);
  return static_cast<size_t>(columns / traits.block_elements) * traits.block_bytes;
}

}  // namespace mneme::engine
