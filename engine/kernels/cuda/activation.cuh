// The functions of activation.h on one number.
#pragma once

#include "engine/kernels/activation.h"
#include "engine/kernels/cuda/device.cuh"

namespace mneme::engine::cuda {

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float Silu(float x) { return x / (1.0f + expf(-x)); }

__device__ __forceinline__ float Apply(Activation f, float x) {
  constexpr float kInverseSqrt2 = 0.70710678f, kSqrt2OverPi = 0.79788456f;
  switch (f) {
    case Activation::kSigmoid:
      return Sigmoid(x);
    case Activation::kTanh:
      return tanhf(x);
    case Activation::kReluSquared:
      // Not fmaxf, which would lose a NaN.
      return x > 0 || x != x ? x * x : 0.0f;
    case Activation::kDecay:
      return expf(-expf(x));
    case Activation::kSilu:
      return Silu(x);
    case Activation::kGeluErf:
      return 0.5f * x * erfcf(-x * kInverseSqrt2);
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
    case Activation::kRelu:
      return x > 0 || x != x ? x : 0.0f;
  }
  return x;
}

}  // namespace mneme::engine::cuda
