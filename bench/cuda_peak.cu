// Prints how many TFLOP/s of bf16 products the GPU does by mma.sync out of registers, the best of a
// few runs: the denominator of shares in bench/device_check.sh. Instructions of one generation only
// (wgmma, tcgen05) do more.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

namespace {

constexpr int kThreads = 256;
constexpr int kTiles = 8;  // independent sums of a warp: enough to hide an instruction's latency
constexpr int kRounds = 4096;

// Numbers that are not zero: zeros take less power, and so run faster.
__global__ void __launch_bounds__(kThreads) Multiply(float* out) {
  unsigned a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = 0x3f803f00u + 0x00010001u * (threadIdx.x + i);
  for (int i = 0; i < 2; ++i) b[i] = 0x3e803f80u + 0x00010001u * (threadIdx.x * 3 + i);
  float c[kTiles][4] = {};
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
          "{%8, %9}, {%0, %1, %2, %3};"
          : "+f"(c[t][0]), "+f"(c[t][1]), "+f"(c[t][2]), "+f"(c[t][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }
  float sum = 0;
  for (int t = 0; t < kTiles; ++t) sum += c[t][0] + c[t][1] + c[t][2] + c[t][3];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

bool Ok(cudaError_t error) {
  if (error == cudaSuccess) return true;
  std::fprintf(stderr, "%s: %s\n", cudaGetErrorName(error), cudaGetErrorString(error));
  return false;
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  if (!Ok(cudaGetDeviceProperties(&properties, 0))) return 77;
  const int blocks = 4 * properties.multiProcessorCount;
  float* out = nullptr;
  cudaEvent_t begin, end;
  if (!Ok(cudaMalloc(&out, sizeof(float) * blocks * kThreads)) || !Ok(cudaEventCreate(&begin)) ||
      !Ok(cudaEventCreate(&end))) {
    return 1;
  }
  float best = 1e30f;
  for (int run = 0; run < 10; ++run) {
    cudaEventRecord(begin);
    Multiply<<<blocks, kThreads>>>(out);
    cudaEventRecord(end);
    float milliseconds = 0;
    if (!Ok(cudaEventSynchronize(end)) || !Ok(cudaEventElapsedTime(&milliseconds, begin, end))) {
      return 1;
    }
    if (run > 0) best = std::min(best, milliseconds);
  }
  const double flops =
      2.0 * 16 * 8 * 16 * kTiles * kRounds * (kThreads / 32) * static_cast<double>(blocks);
  std::printf("%.1f\n", flops / (best * 1e-3) / 1e12);
  return 0;
}
