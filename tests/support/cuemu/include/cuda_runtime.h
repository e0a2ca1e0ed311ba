// The part of the CUDA runtime that engine/kernels/cuda uses, executed on the host: same names, so
// that the same sources compile here and with the toolkit. What becomes of mistakes: ../README.md.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <bit>
#include <cstddef>
#include <functional>
#include <tuple>
#include <utility>

#define CUEMU 1

#define __host__
#define __device__
#define __global__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

// ---- vector types

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs; written at each switch.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

// ---- runtime

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevicePointer = 17,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorECCUncorrectable = 214,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocDefault = 0;

struct CuemuStream;
struct CuemuEvent;
using cudaStream_t = CuemuStream*;
using cudaEvent_t = CuemuEvent*;

struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  size_t sharedMemPerBlock;
  size_t sharedMemPerBlockOptin;
  int major, minor;
  int multiProcessorCount;
};

struct cudaLaunchAttribute {
  int id;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t cudaMalloc(void** at, size_t bytes);
cudaError_t cudaFree(void* at);
cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* at);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);

namespace cuemu {

cudaError_t AllowShared(const void* kernel, size_t bytes);
cudaError_t Enqueue(const cudaLaunchConfig_t& config, const void* kernel,
                    std::function<void()> thread);

// Of the block that runs: exactly what its launch asked for.
std::byte* SharedMemory();

// Fault kinds are counted by tests.
[[noreturn]] void Fault(const char* what);

void SyncThreads(const char* file, int line, int counter);

// A call that the lanes of `mask` make together; the last one to come computes for all.
struct Lanes {
  void* call[32];  // of the lanes in the mask, else null
};
void WarpCollective(unsigned mask, const char* kind, void* call, void (*compute)(const Lanes&));

template <typename T>
void Poison(T& value) {
  memset(&value, 0xff, sizeof value);
}

template <typename T>
struct Shuffle {
  T in;
  int source;  // a lane
  T out;
};

template <typename T>
T RunShuffle(unsigned mask, const char* kind, T value, int source) {
  Shuffle<T> call{value, source, value};
  WarpCollective(mask, kind, &call, [](const Lanes& lanes) {
    for (void* at : lanes.call) {
      if (at == nullptr) continue;
      auto& mine = *static_cast<Shuffle<T>*>(at);
      auto* from = static_cast<Shuffle<T>*>(lanes.call[mine.source]);
      if (from == nullptr) {
        Poison(mine.out);
      } else {
        mine.out = from->in;
      }
    }
  });
  return call.out;
}

inline int Lane() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) %
                          32);
}

}  // namespace cuemu

template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute, int bytes) {
  return cuemu::AllowShared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes));
}

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  return cuemu::Enqueue(*config, reinterpret_cast<const void*>(kernel),
                        [kernel, values = std::tuple<Params...>(std::forward<Args>(args)...)] {
                          std::apply(kernel, values);
                        });
}

// ---- in kernels

#define __syncthreads() ::cuemu::SyncThreads(__FILE__, __LINE__, __COUNTER__)

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  int nothing = 0;
  cuemu::WarpCollective(mask, "__syncwarp", &nothing, [](const cuemu::Lanes&) {});
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  return cuemu::RunShuffle(mask, "__shfl_sync", value, source & 31);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return cuemu::RunShuffle(mask, "__shfl_xor_sync", value, cuemu::Lane() ^ lanes);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes) {
  const int source = cuemu::Lane() + static_cast<int>(lanes);
  return cuemu::RunShuffle(mask, "__shfl_down_sync", value, source > 31 ? cuemu::Lane() : source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  struct Call {
    int predicate;
    unsigned out;
  } call{predicate, 0};
  cuemu::WarpCollective(mask, "__ballot_sync", &call, [](const cuemu::Lanes& lanes) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) {
      if (lanes.call[i] != nullptr && static_cast<Call*>(lanes.call[i])->predicate != 0) {
        bits |= 1u << i;
      }
    }
    for (void* at : lanes.call) {
      if (at != nullptr) static_cast<Call*>(at)->out = bits;
    }
  });
  return call.out;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

template <typename T>
T __ldg(const T* at) {
  return *at;
}
// Overloads of min and max that device code has without a namespace.
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  }
  return sum;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
