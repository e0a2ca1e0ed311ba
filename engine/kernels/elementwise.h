// Elementwise operations on activations. Position in the array changes no bits.
#pragma once

#include <cstdint>

namespace mneme::engine {

class Exec;

// y[i] = silu(gate[i]) * up[i], silu(z) = z / (1 + exp(-z)); n elements; y may be gate or up.
using SiluMulFn = void (*)(Exec& exec, const float* gate, const float* up, int64_t n, float* y);

// y[i] += x[i].
using AddFn = void (*)(Exec& exec, const float* x, int64_t n, float* y);

}  // namespace mneme::engine
