// Elementwise functions of activations. Position in the array changes no bits.
#pragma once

#include <cstdint>

namespace mneme::engine {

class Exec;

enum class Activation {
  kSigmoid,      // 1 / (1 + e^-x)
  kTanh,         // absolute error below 2e-7
  kReluSquared,  // max(x, 0)^2
  kDecay,        // e^(-e^x): 0 where e^x overflows
};

// y[i] = f(x[i]); n elements; y may be x.
using ActivateFn = void (*)(Exec& exec, Activation f, const float* x, int64_t n, float* y);

// y[i] *= x[i].
using MulFn = void (*)(Exec& exec, const float* x, int64_t n, float* y);

}  // namespace mneme::engine
