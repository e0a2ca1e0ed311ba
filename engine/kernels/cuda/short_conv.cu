// Short convolutions (short_conv.h): a warp per part of a row, lanes over its channels, and a few
// rows one after the other. A part is a head where heads are normalised.
#include "engine/kernels/cuda/activation.cuh"
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"

namespace mneme::engine::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kRows = 4;            // of a warp, at least
constexpr int64_t kPartChannels = 128;  // of a part that nothing is summed over

struct Parts {
  int64_t count;
  int64_t channels;
};
__host__ __device__ constexpr Parts PartsOf(const ShortConvArgs& args) {
  if (args.norm_heads > 0) return {args.norm_heads, args.width / args.norm_heads};
  return {(args.width + kPartChannels - 1) / kPartChannels, kPartChannels};
}

// All the rows that read `kept` are the first warp's, which may then replace it.
__host__ __device__ constexpr int64_t RowsPerWarp(const ShortConvArgs& args) {
  return args.num_taps - 1 > kRows ? args.num_taps - 1 : kRows;
}

int64_t Warps(const ShortConvArgs& args) {
  const int64_t rows = RowsPerWarp(args);
  return PartsOf(args).count * ((args.rows + rows - 1) / rows);
}

// Block (warps, entry).
__global__ void ShortConvKernel(const __grid_constant__ List<ShortConvArgs> batch) {
  const ShortConvArgs args = batch[blockIdx.y];
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const Parts parts = PartsOf(args);
  const int64_t K = args.num_taps, tail = K - 1, width = args.width;
  const int64_t first_row = warp / parts.count * RowsPerWarp(args);
  const int64_t rows_end = std::min(args.rows, first_row + RowsPerWarp(args));
  const int64_t begin = warp % parts.count * parts.channels + lane;
  const int64_t end = std::min(width, (warp % parts.count + 1) * parts.channels);
  // Beyond the entry's last warp there are no rows.
  for (int64_t t = first_row; t < rows_end; ++t) {
    float* y = args.y + t * width;
    float squares = 0;
    for (int64_t c = begin; c < end; c += kWarp) {
      float sum = 0;
      for (int64_t k = 0; k < K; ++k) {
        const int64_t at = t - tail + k;
        // Rows of negative positions have never been written: they are zero.
        const float x = at >= 0
                            ? args.x[at * width + c]
                            : args.kept[((args.position + at) % tail + tail) % tail * width + c];
        sum = fmaf(args.taps[k * width + c], x, sum);
      }
      const float value = Silu(sum);
      squares = fmaf(value, value, squares);
      y[c] = value;
    }
    if (args.norm_heads > 0) {
      const float norm = sqrtf(WarpSum(squares) + 1e-6f);
      for (int64_t c = begin; c < end; c += kWarp) y[c] /= norm;
    }
  }
  if (first_row != 0) return;
  for (int64_t t = args.rows > tail ? args.rows - tail : 0; t < args.rows; ++t) {
    float* kept = args.kept + (args.position + t) % tail * width;
    for (int64_t c = begin; c < end; c += kWarp) kept[c] = args.x[t * width + c];
  }
}

}  // namespace

void ShortConv(Exec& exec, std::span<const ShortConvArgs> batch) {
  int64_t warps = 0;
  for (const ShortConvArgs& args : batch) warps = std::max(warps, Warps(args));
  if (warps == 0) return;
  CudaDevice& device = Cuda(exec);
  const dim3 grid(Blocks(warps, kWarps), static_cast<unsigned>(batch.size()));
  Launch(device, ShortConvKernel, grid, kThreads, 0, ListOf(device, batch));
}

}  // namespace mneme::engine::cuda
