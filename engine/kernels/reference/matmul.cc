// The two contracts of contract.h, written down literally.
#include "engine/kernels/matmul.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/kernels/dequantize.h"
#include "engine/kernels/host.h"
#include "engine/kernels/reference/reference.h"

namespace mneme::engine::reference {
namespace {

struct ActivationBlock {
  int8_t q[kCodeBlock];
  float d;
  float s;
};

ActivationBlock QuantizeBlock(const float* x) {
  ActivationBlock block;
  float max = 0;
  bool finite = true;
  for (int e = 0; e < kCodeBlock; ++e) {
    finite = finite && std::isfinite(x[e]);
    max = std::max(max, std::fabs(x[e]));
  }
  std::memset(block.q, 0, sizeof(block.q));
  if (!finite) {
    block.d = block.s = std::numeric_limits<float>::quiet_NaN();
    return block;
  }
  block.d = max / 127.0f;
  if (block.d < std::numeric_limits<float>::min()) {
    block.d = block.s = 0;
    return block;
  }
  int sum = 0;
  for (int e = 0; e < kCodeBlock; ++e) {
    block.q[e] = static_cast<int8_t>(std::nearbyint(x[e] / block.d));
    sum += block.q[e];
  }
  block.s = block.d * static_cast<float>(sum);
  return block;
}

float DotF32(const float* w, const float* x, int64_t K) {
  float s[8] = {};
  for (int64_t k = 0; k < K; ++k) s[k % 8] = std::fma(w[k], x[k], s[k % 8]);
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

float DotInt8(const Weight& weight, int64_t n, const ActivationBlock* x) {
  const std::byte* row = weight.data + n * weight.row_bytes();
  const int offset = CodeOffset(weight.dtype);
  // Links of the chain: one per 32 elements, for Q6_K one per 16.
  const int link = weight.dtype == DType::kQ6_K ? 16 : 32;
  float a = 0;
  float m = 0;
  CodeBlock w;
  for (int64_t b = 0; b < weight.columns / kCodeBlock; ++b) {
    UnpackCodes(weight.dtype, row, b, &w);
    for (int begin = 0; begin < kCodeBlock; begin += link) {
      int dot = 0;
      for (int e = begin; e < begin + link; ++e) dot += (w.code[e] - offset) * x[b].q[e];
      a = std::fma(static_cast<float>(dot), w.scale[begin / 16] * x[b].d, a);
    }
    m = std::fma(w.min, x[b].s, m);
  }
  return HasMin(weight.dtype) ? a + m : a;
}

void Store(const MatMulTask& task, int64_t t, int64_t n, float value) {
  float& y = task.y[t * task.y_stride + n];
  value *= task.scale;
  if (task.bias != nullptr) {
    const float start = task.accumulate ? y + task.bias[n] : task.bias[n];
    y = start + value;
  } else {
    y = task.accumulate ? y + value : value;
  }
}

}  // namespace

void MatMul(Exec& exec, std::span<const MatMulTask> tasks, const float* x, int64_t x_stride,
            int64_t T) {
  if (tasks.empty()) return;
  const int64_t K = tasks[0].weight.columns;
  const int64_t blocks = (K + kCodeBlock - 1) / kCodeBlock;
  auto* quantized = reinterpret_cast<ActivationBlock*>(
      Host(exec).Scratch(HostDevice::kMatMulActivations, T * blocks * sizeof(ActivationBlock)));
  if (exec.contract() == Contract::kInt8 && K % kCodeBlock == 0) {
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t b = 0; b < blocks; ++b) {
        quantized[t * blocks + b] = QuantizeBlock(x + t * x_stride + b * kCodeBlock);
      }
    }
  }
  float* rows = reinterpret_cast<float*>(
      Host(exec).Scratch(HostDevice::kMatMulWorkers,
                         Host(exec).pool().num_threads() * static_cast<size_t>(K) * sizeof(float)));
  for (const MatMulTask& task : tasks) {
    const bool int8 = exec.contract() == Contract::kInt8 && IsQuantized(task.weight.dtype);
    Host(exec).pool().Run(task.weight.rows, [&](int64_t n, int worker) {
      if (int8) {
        for (int64_t t = 0; t < T; ++t) {
          Store(task, t, n, DotInt8(task.weight, n, quantized + t * blocks));
        }
        return;
      }
      float* w = rows + worker * K;
      DequantizeRow(task.weight.dtype, task.weight.data + n * task.weight.row_bytes(), K, w);
      for (int64_t t = 0; t < T; ++t) Store(task, t, n, DotF32(w, x + t * x_stride, K));
    });
  }
}

}  // namespace mneme::engine::reference
