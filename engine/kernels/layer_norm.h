// Layer normalisation (Ba et al. 2016, arXiv:1607.06450) and, over parts of a row, group
// normalisation (Wu & He 2018, arXiv:1803.08494), statistics in f32.
//
//   y[t, c] = (x[t, c] - mean_g) / sqrt(var_g + eps) * w[c] + b[c]
//
// mean_g and var_g (population variance, of the centred values) of the group of D / groups
// neighbours that c lies in.
#pragma once

#include <cstdint>

namespace mneme::engine {

class Exec;

struct LayerNormArgs {
  const float* x = nullptr;  // [T, D] contiguous
  const float* w = nullptr;  // [D]
  const float* b = nullptr;  // [D]
  float eps = 0;
  int64_t T = 0;
  int64_t D = 0;
  int64_t groups = 1;  // divides D
  float* y = nullptr;  // [T, D] contiguous; may be x
};

// Row by row: T changes no bits.
using LayerNormFn = void (*)(Exec& exec, const LayerNormArgs& args);

}  // namespace mneme::engine
