// Rotary position embedding (rope.h): a thread per pair. Cosines and sines come from the host,
// where angles are reduced in double, and stay on the device while layers ask for the same ones.
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"

namespace mneme::engine::cuda {
namespace {

constexpr int kThreads = 128;

struct Rotation {
  int64_t head_dim, pairs;
  bool half;
  const float* cos;  // [T, pairs]
  const float* sin;
};

// Block (token, pairs of all heads, rows).
__global__ void RopeKernel(const __grid_constant__ List<RotatedRows> batch, Rotation args) {
  const RotatedRows rows = batch[blockIdx.z];
  const int64_t t = blockIdx.x;
  const int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (i >= rows.heads * args.pairs) return;
  const int64_t j = i % args.pairs;
  float* head = rows.x + t * rows.x_stride + i / args.pairs * args.head_dim;
  float& a = head[args.half ? j : 2 * j];
  float& b = head[args.half ? j + args.pairs : 2 * j + 1];
  const float cos = args.cos[t * args.pairs + j];
  const float sin = args.sin[t * args.pairs + j];
  // Each product rounded, as on the other backends.
  const float rotated_a = a * cos - b * sin;
  b = a * sin + b * cos;
  a = rotated_a;
}

}  // namespace

void Rope(Exec& exec, const RopeArgs& args) {
  const int64_t T = static_cast<int64_t>(args.positions.size()), pairs = args.rotary_dim / 2;
  if (T == 0 || pairs == 0 || args.rows.empty()) return;
  CudaDevice& device = Cuda(exec);
  int64_t heads = 0;
  for (const RotatedRows& rows : args.rows) heads = std::max(heads, rows.heads);
  const float* cos = device.RopeTable(args.positions, args.theta.first(pairs));
  const Rotation rotation = {args.head_dim, pairs, args.layout == RopeLayout::kHalf, cos,
                             cos + T * pairs};
  const dim3 grid(static_cast<unsigned>(T), Blocks(heads * pairs, kThreads),
                  static_cast<unsigned>(args.rows.size()));
  Launch(device, RopeKernel, grid, kThreads, 0, ListOf(device, args.rows), rotation);
}

}  // namespace mneme::engine::cuda
