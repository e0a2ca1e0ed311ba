// What kernels include, and nothing else of CUDA: names that mean the same on a GPU and under
// emulation (tests/support/cuemu). The only file that asks which of the two it is compiled for.
//
// Rules for kernels: full warps (blockDim.x a multiple of 32 where lanes work together), explicit
// masks, no float atomics, sums in an order that the row alone decides. Sources are compiled
// without contraction: what is to be fused says fmaf, so that every instantiation rounds alike.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#ifdef CUEMU
#include "engine/core/half.h"
#else
#include <cuda_fp16.h>
#endif

namespace mneme::engine::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// The block's dynamic shared memory: all the shared memory that kernels have.
template <typename T>
__device__ __forceinline__ T* DynamicShared() {
#ifdef CUEMU
  return reinterpret_cast<T*>(cuemu::SharedMemory());
#else
  extern __shared__ __align__(16) unsigned char mneme_dynamic_shared[];
  return reinterpret_cast<T*>(mneme_dynamic_shared);
#endif
}

// Exact, and to nearest with ties to even, beyond the range an infinity: as engine/core/half.h.
__device__ __forceinline__ float HalfBitsToFloat(uint16_t bits) {
#ifdef CUEMU
  return HalfToFloat(bits);
#else
  return __half2float(__ushort_as_half(bits));
#endif
}
__device__ __forceinline__ uint16_t FloatToHalfBits(float value) {
#ifdef CUEMU
  return FloatToHalf(value);
#else
  return __half_as_ushort(__float2half_rn(value));
#endif
}
__device__ __forceinline__ float BFloat16BitsToFloat(uint16_t bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

// The sum over a warp's lanes, in every lane the same bits: a butterfly.
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}
__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
  }
  return x;
}

// The sum over all threads of a block of whole warps, in every thread; `shared` has a float per
// warp. All threads call it.
__device__ __forceinline__ float BlockSum(float x, float* shared) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  x = WarpSum(x);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < warps; ++i) sum += shared[i];
  __syncthreads();  // `shared` may be written again
  return sum;
}

}  // namespace mneme::engine::cuda
