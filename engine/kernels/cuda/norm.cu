// RMS, layer and group normalisation (rms_norm.h, layer_norm.h): a block per row or part of a row.
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"

namespace mneme::engine::cuda {
namespace {

constexpr int kThreads = 128;
constexpr size_t kSharedBytes = kThreads / kWarp * sizeof(float);

__global__ void RmsNormKernel(const float* x, const float* w, float eps, int64_t D, float* y) {
  const float* row = x + blockIdx.x * D;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < D; i += blockDim.x) squares = fmaf(row[i], row[i], squares);
  squares = BlockSum(squares, DynamicShared<float>());
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(D) + eps);
  for (int64_t i = threadIdx.x; i < D; i += blockDim.x)
    y[blockIdx.x * D + i] = row[i] * scale * w[i];
}

// Block (group, row).
__global__ void LayerNormKernel(LayerNormArgs args) {
  const int64_t n = args.D / args.groups;
  const int64_t channel = blockIdx.x * n, at = blockIdx.y * args.D + channel;
  const float* x = args.x + at;
  float* shared = DynamicShared<float>();
  float sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  const float mean = BlockSum(sum, shared) / static_cast<float>(n);
  float squares = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float centred = x[i] - mean;
    squares = fmaf(centred, centred, squares);
  }
  const float variance = BlockSum(squares, shared) / static_cast<float>(n);
  const float scale = 1.0f / sqrtf(variance + args.eps);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    args.y[at + i] = fmaf((x[i] - mean) * scale, args.w[channel + i], args.b[channel + i]);
  }
}

}  // namespace

void RmsNorm(Exec& exec, const float* x, const float* w, float eps, int64_t T, int64_t D,
             float* y) {
  Launch(Cuda(exec), RmsNormKernel, static_cast<unsigned>(T), kThreads, kSharedBytes, x, w, eps, D,
         y);
}

void LayerNorm(Exec& exec, const LayerNormArgs& args) {
  for (int64_t first = 0; first < args.T; first += kMostGridRows) {
    LayerNormArgs part = args;
    part.T = std::min(kMostGridRows, args.T - first);
    part.x += first * args.D;
    part.y += first * args.D;
    Launch(Cuda(exec), LayerNormKernel,
           dim3(static_cast<unsigned>(args.groups), static_cast<unsigned>(part.T)), kThreads,
           kSharedBytes, part);
  }
}

}  // namespace mneme::engine::cuda
