// Copies of rows (rows.h): a block per row, entries of the batch side by side.
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"

namespace mneme::engine::cuda {
namespace {

constexpr int kThreads = 128;

// Block (row, entry).
template <typename Args>
dim3 GridOf(std::span<const Args> batch) {
  int64_t rows = 0;
  for (const Args& args : batch) rows = std::max(rows, args.rows);
  return dim3(static_cast<unsigned>(rows), static_cast<unsigned>(batch.size()));
}

__global__ void CopyRowsKernel(const __grid_constant__ List<CopyRowsArgs> batch) {
  const CopyRowsArgs args = batch[blockIdx.y];
  const int64_t row = blockIdx.x;
  if (row >= args.rows) return;
  const float* from = args.from + row * args.from_stride;
  float* to = args.to + row * args.to_stride;
  for (int64_t i = threadIdx.x; i < args.width; i += blockDim.x) to[i] = from[i];
}

__global__ void StoreRowsKernel(const __grid_constant__ List<StoreRowsArgs> batch) {
  const StoreRowsArgs args = batch[blockIdx.y];
  const int64_t row = blockIdx.x;
  if (row >= args.rows) return;
  const float* from = args.x + row * args.x_stride;
  if (args.dtype == DType::kF32) {
    float* to = reinterpret_cast<float*>(args.to) + row * args.width;
    for (int64_t i = threadIdx.x; i < args.width; i += blockDim.x) to[i] = from[i];
  } else {
    uint16_t* to = reinterpret_cast<uint16_t*>(args.to) + row * args.width;
    for (int64_t i = threadIdx.x; i < args.width; i += blockDim.x) to[i] = FloatToHalfBits(from[i]);
  }
}

// A warp per row.
__global__ void FiniteRowsKernel(const float* x, int64_t T, int64_t width, uint8_t* finite) {
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (row >= T) return;  // of the whole warp
  bool good = true;
  for (int64_t i = threadIdx.x % kWarp; i < width; i += kWarp) {
    good = good && (__float_as_uint(x[row * width + i]) & 0x7f800000u) != 0x7f800000u;
  }
  good = __all_sync(kAllLanes, good);
  if (threadIdx.x % kWarp == 0) finite[row] = good;
}

}  // namespace

void CopyRows(Exec& exec, std::span<const CopyRowsArgs> batch) {
  if (batch.empty()) return;
  CudaDevice& device = Cuda(exec);
  Launch(device, CopyRowsKernel, GridOf(batch), kThreads, 0, ListOf(device, batch));
}

void StoreRows(Exec& exec, std::span<const StoreRowsArgs> batch) {
  if (batch.empty()) return;
  CudaDevice& device = Cuda(exec);
  Launch(device, StoreRowsKernel, GridOf(batch), kThreads, 0, ListOf(device, batch));
}

void FiniteRows(Exec& exec, const float* x, int64_t T, int64_t width, uint8_t* finite) {
  CudaDevice& device = Cuda(exec);
  auto* found = reinterpret_cast<uint8_t*>(device.Scratch(CudaDevice::kScratchA, T));
  Launch(device, FiniteRowsKernel, Blocks(T, kThreads / kWarp), kThreads, 0, x, T, width, found);
  device.Deliver(reinterpret_cast<const std::byte*>(found), finite, T);
}

}  // namespace mneme::engine::cuda
