// Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), statistics in f32.
//
//   y[t, d] = x[t, d] * w[d] / sqrt(mean_d(x[t, d]^2) + eps)
#pragma once

#include <cstdint>

namespace mneme::engine {

class Exec;

// x, y [T, D] contiguous, may be the same array; w [D] f32. Row by row: T changes no bits.
using RmsNormFn = void (*)(Exec& exec, const float* x, const float* w, float eps, int64_t T,
                           int64_t D, float* y);

}  // namespace mneme::engine
