// Elementwise ops (elementwise.h, activation.h): a thread per element, in strides of the grid.
#include "engine/kernels/cuda/activation.cuh"
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"

namespace mneme::engine::cuda {
namespace {

constexpr int kThreads = 256;

__device__ int64_t FirstElement() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ int64_t ElementStride() { return int64_t{gridDim.x} * blockDim.x; }

// Enough blocks to fill any device, few enough that each has work.
unsigned Grid(int64_t n) {
  return static_cast<unsigned>(std::min<int64_t>(Blocks(n, kThreads), 4096));
}

__global__ void SiluMulKernel(const float* gate, const float* up, int64_t n, float* y) {
  for (int64_t i = FirstElement(); i < n; i += ElementStride()) y[i] = Silu(gate[i]) * up[i];
}

__global__ void AddKernel(const float* x, int64_t n, float* y) {
  for (int64_t i = FirstElement(); i < n; i += ElementStride()) y[i] += x[i];
}

__global__ void MulKernel(const float* x, int64_t n, float* y) {
  for (int64_t i = FirstElement(); i < n; i += ElementStride()) y[i] *= x[i];
}

__global__ void ActivateKernel(Activation f, const float* x, int64_t n, float* y) {
  for (int64_t i = FirstElement(); i < n; i += ElementStride()) y[i] = Apply(f, x[i]);
}

// Longer series do not fit a launch's arguments; none of the architectures has more than three.
constexpr int kMaxSeries = 32;
struct Series {
  Activation f[kMaxSeries];
  int count;
};

__global__ void SeriesActivateKernel(Series series, const float* x, const float* scale,
                                     const float* bias, int64_t n, int64_t C, float* y) {
  for (int64_t i = FirstElement(); i < n; i += ElementStride()) {
    const int64_t c = i % C;
    const float value = x[i];
    float sum = Apply(series.f[0], fmaf(scale[c], value, bias[c]));
    for (int f = 1; f < series.count; ++f) {
      sum += Apply(series.f[f], fmaf(scale[f * C + c], value, bias[f * C + c]));
    }
    y[i] = sum;
  }
}

}  // namespace

void SiluMul(Exec& exec, const float* gate, const float* up, int64_t n, float* y) {
  Launch(Cuda(exec), SiluMulKernel, Grid(n), kThreads, 0, gate, up, n, y);
}

void Add(Exec& exec, const float* x, int64_t n, float* y) {
  Launch(Cuda(exec), AddKernel, Grid(n), kThreads, 0, x, n, y);
}

void Mul(Exec& exec, const float* x, int64_t n, float* y) {
  Launch(Cuda(exec), MulKernel, Grid(n), kThreads, 0, x, n, y);
}

void Activate(Exec& exec, Activation f, const float* x, int64_t n, float* y) {
  Launch(Cuda(exec), ActivateKernel, Grid(n), kThreads, 0, f, x, n, y);
}

void SeriesActivate(Exec& exec, const SeriesActivateArgs& args) {
  Series series{};
  series.count = static_cast<int>(args.series.size());
  assert(series.count <= kMaxSeries);
  std::copy(args.series.begin(), args.series.end(), series.f);
  const int64_t n = args.T * args.C;
  Launch(Cuda(exec), SeriesActivateKernel, Grid(n), kThreads, 0, series, args.x, args.scale,
         args.bias, n, args.C, args.y);
}

}  // namespace mneme::engine::cuda
