// Elementwise functions of activations. Position in the array changes no bits.
#pragma once

#include <cstdint>
#include <span>

namespace mneme::engine {

class Exec;

enum class Activation {
  kSigmoid,      // 1 / (1 + e^-x)
  kTanh,         // absolute error below 2e-7
  kReluSquared,  // max(x, 0)^2
  kDecay,        // e^(-e^x): 0 where e^x overflows
  kSilu,         // x / (1 + e^-x)
  kGeluErf,      // x (1 + erf(x / sqrt 2)) / 2
  kGeluTanh,     // x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
  kRelu,         // max(x, 0)
};

// y[i] = f(x[i]); n elements; y may be x.
using ActivateFn = void (*)(Exec& exec, Activation f, const float* x, int64_t n, float* y);

// A series of activations of one input, each with a scale and a bias per channel (Wang et al. 2023,
// arXiv:2312.17276, equation 7):
//   y[t, c] = sum over i, ascending, of f_i(scale[i, c] * x[t, c] + bias[i, c])
struct SeriesActivateArgs {
  const float* x = nullptr;            // [T, C] contiguous
  const float* scale = nullptr;        // [n, C]
  const float* bias = nullptr;         // [n, C]
  std::span<const Activation> series;  // [n], n >= 1
  int64_t T = 0;
  int64_t C = 0;
  float* y = nullptr;  // [T, C] contiguous; may be x
};
// With n = 1, a scale of 1 and a bias of 0 it gives the bits of ActivateFn.
using SeriesActivateFn = void (*)(Exec& exec, const SeriesActivateArgs& args);

// y[i] *= x[i].
using MulFn = void (*)(Exec& exec, const float* x, int64_t n, float* y);

}  // namespace mneme::engine
