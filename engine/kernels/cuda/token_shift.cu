// Token shift of RWKV (token_shift.h): a thread per channel, of one token or a few neighbours.
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"

namespace mneme::engine::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokens = 4;  // a row is read by one block, but for the last of a block's rows

// Block (channels and tokens, sequence): neighbours in the grid are of the same tokens.
__global__ void TokenShiftKernel(const __grid_constant__ List<TokenShiftArgs> batch,
                                 unsigned channel_blocks) {
  const TokenShiftArgs args = batch[blockIdx.y];
  const int64_t C = args.C;
  const int64_t c = int64_t{blockIdx.x % channel_blocks} * kThreads + threadIdx.x;
  const int64_t first = int64_t{blockIdx.x / channel_blocks} * kTokens;
  if (c >= C || first >= args.T) return;
  float before = first == 0 ? args.previous[c] : args.x[(first - 1) * C + c];
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const int64_t t = first + i;
    if (t >= args.T) break;
    const float x = args.x[t * C + c];
    args.delta[t * C + c] = before - x;
    before = x;
  }
  // Of the thread that was the only one to read it.
  if (first == 0) args.previous[c] = args.x[(args.T - 1) * C + c];
}

// Block (channels and token, blend).
__global__ void LerpKernel(const __grid_constant__ List<LerpArgs> batch, unsigned channel_blocks) {
  const LerpArgs args = batch[blockIdx.y];
  const int64_t c = int64_t{blockIdx.x % channel_blocks} * kThreads + threadIdx.x;
  const int64_t t = blockIdx.x / channel_blocks;
  if (c >= args.C) return;
  const int64_t i = t * args.C + c;
  float mu = args.mu[c];
  if (args.dynamic != nullptr) mu += args.dynamic[t * args.dynamic_stride + c];
  args.y[i] = fmaf(args.delta[i], mu, args.x[i]);
}

}  // namespace

void TokenShift(Exec& exec, std::span<const TokenShiftArgs> batch) {
  int64_t C = 0, T = 0;
  for (const TokenShiftArgs& args : batch) {
    C = std::max(C, args.C);
    T = std::max(T, args.T);
  }
  if (C == 0 || T == 0) return;
  CudaDevice& device = Cuda(exec);
  const unsigned channel_blocks = Blocks(C, kThreads);
  const dim3 grid(channel_blocks * Blocks(T, kTokens), static_cast<unsigned>(batch.size()));
  Launch(device, TokenShiftKernel, grid, kThreads, 0, ListOf(device, batch), channel_blocks);
}

void Lerp(Exec& exec, std::span<const LerpArgs> batch) {
  if (batch.empty()) return;
  CudaDevice& device = Cuda(exec);
  const unsigned channel_blocks = Blocks(batch[0].C, kThreads);
  const dim3 grid(channel_blocks * static_cast<unsigned>(batch[0].T),
                  static_cast<unsigned>(batch.size()));
  Launch(device, LerpKernel, grid, kThreads, 0, ListOf(device, batch), channel_blocks);
}

}  // namespace mneme::engine::cuda
