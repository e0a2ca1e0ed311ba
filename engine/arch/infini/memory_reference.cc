// The equations as written, one scalar at a time.
#include <algorithm>
#include <cmath>

#include "engine/arch/infini/memory_kernels.h"

namespace mneme::engine::infini {
namespace {

void FeatureMap(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::exp(std::min(x[i], 0.0f)) + std::max(x[i], 0.0f);
}

float Dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void Retrieve(const MemoryView& view, Rows s, int64_t count, float* out, int64_t out_stride) {
  for (int64_t t = 0; t < count; ++t) {
    const float* row = s.data + t * s.stride;
    const float denominator = Dot(row, view.normalizer, view.dk) + view.eps;
    for (int64_t j = 0; j < view.dv; ++j) {
      float sum = 0;
      for (int64_t i = 0; i < view.dk; ++i) sum += row[i] * view.memory[i * view.dv + j];
      out[t * out_stride + j] = sum / denominator;
    }
  }
}

void Accumulate(Rows s, Rows u, int64_t count, int64_t dk, int64_t dv, float* memory,
                float* normalizer) {
  for (int64_t i = 0; i < dk; ++i) {
    for (int64_t t = 0; t < count; ++t) normalizer[i] += s.data[t * s.stride + i];
    for (int64_t j = 0; j < dv; ++j) {
      float sum = memory[i * dv + j];
      for (int64_t t = 0; t < count; ++t) {
        sum += s.data[t * s.stride + i] * u.data[t * u.stride + j];
      }
      memory[i * dv + j] = sum;
    }
  }
}

void SubtractFrom(Rows v, int64_t count, int64_t dv, float* u, int64_t u_stride) {
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t j = 0; j < dv; ++j) {
      u[t * u_stride + j] = v.data[t * v.stride + j] - u[t * u_stride + j];
    }
  }
}

void Blend(float memory_share, float local_share, Rows local, int64_t count, int64_t dv, float* mix,
           int64_t mix_stride) {
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t j = 0; j < dv; ++j) {
      float& value = mix[t * mix_stride + j];
      value = memory_share * value + local_share * local.data[t * local.stride + j];
    }
  }
}

}  // namespace

const MemoryKernels& ReferenceMemoryKernels() {
  static constexpr MemoryKernels kKernels = {.backend = "reference",
                                             .feature_map = FeatureMap,
                                             .retrieve = Retrieve,
                                             .accumulate = Accumulate,
                                             .subtract_from = SubtractFrom,
                                             .blend = Blend};
  return kKernels;
}

}  // namespace mneme::engine::infini
