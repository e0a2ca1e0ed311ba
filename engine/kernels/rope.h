// Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in place.
//
// Pair j of a head of width Dh is rotated by angle(position, j) = position * theta_j:
//   (a, b) -> (a cos - b sin, a sin + b cos)
// kInterleaved: pair j = components (2j, 2j+1)  (GGUF `llama`).
// kHalf:        pair j = components (j, j + rotary/2)  (Hugging Face weights).
#pragma once

#include <cstdint>
#include <span>

namespace mneme::engine {

class Exec;

enum class RopeLayout { kInterleaved, kHalf };

struct RotatedRows {
  float* x = nullptr;  // [T, heads, Dh], token stride x_stride elements, heads contiguous
  int64_t x_stride = 0;
  int64_t heads = 0;
};

// Queries and keys, say: all of a call are turned by the same angles.
struct RopeArgs {
  std::span<const RotatedRows> rows;
  int64_t head_dim = 0;    // Dh
  int64_t rotary_dim = 0;  // even, <= Dh; the rest of a head is left alone
  RopeLayout layout = RopeLayout::kInterleaved;
  std::span<const int64_t> positions;  // [T], absolute
  // theta_j for j < rotary_dim/2, in double: base^(-2j/rotary_dim) over any scaling divisor. Angles
  // are formed and reduced mod 2 pi in double, then cos and sin are rounded to f32: positions in
  // the millions stay exact enough (decoders.md A3, pitfall 7).
  std::span<const double> theta;
};

using RopeFn = void (*)(Exec& exec, const RopeArgs& args);

}  // namespace mneme::engine
