// Four neighbouring floats, read and written as one where their place in memory allows it.
#pragma once

#include "engine/kernels/cuda/device.cuh"

namespace mneme::engine::cuda {

struct Quad {
  float at[4];
};

// Whether every fourth element of all rows, `stride` apart from `first` on, can be read as a
// float4.
__device__ __forceinline__ bool QuadsAreAligned(const float* first, int64_t stride) {
  return reinterpret_cast<uintptr_t>(first) % sizeof(float4) == 0 && stride % 4 == 0;
}

// `from` is aligned.
__device__ __forceinline__ Quad LoadQuad(const float* from) {
  const float4 x = *reinterpret_cast<const float4*>(from);
  return {{x.x, x.y, x.z, x.w}};
}

// The first `count` elements, zeros behind them; `count` may be negative or above 4.
__device__ __forceinline__ Quad LoadQuad(const float* from, int count, bool aligned) {
  if (aligned && count >= 4) return LoadQuad(from);
  Quad x{};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) x.at[i] = from[i];
  }
  return x;
}

__device__ __forceinline__ void StoreQuad(const Quad& x, float* to, int count, bool aligned) {
  if (aligned && count >= 4) {
    *reinterpret_cast<float4*>(to) = {x.at[0], x.at[1], x.at[2], x.at[3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) to[i] = x.at[i];
  }
}

}  // namespace mneme::engine::cuda
