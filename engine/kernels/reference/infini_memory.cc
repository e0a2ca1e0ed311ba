// The equations as written, one scalar at a time.
#include <algorithm>
#include <cmath>

#include "engine/kernels/infini_memory_plan.h"
#include "engine/kernels/reference/reference.h"

namespace mneme::engine::reference {
namespace {

float Dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

struct InfiniOps {
  static void Retrieve(const InfiniHead& head, InfiniRows s, int64_t count, float* out,
                       int64_t out_stride) {
    for (int64_t t = 0; t < count; ++t) {
      const float* row = s.data + t * s.stride;
      const float denominator = Dot(row, head.normalizer, head.dk) + head.eps;
      for (int64_t j = 0; j < head.dv; ++j) {
        float sum = 0;
        for (int64_t i = 0; i < head.dk; ++i) sum += row[i] * head.memory[i * head.dv + j];
        out[t * out_stride + j] = sum / denominator;
      }
    }
  }

  static void Accumulate(InfiniRows s, InfiniRows u, int64_t count, int64_t dk, int64_t dv,
                         float* memory, float* normalizer) {
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

  static void SubtractFrom(InfiniRows v, int64_t count, int64_t dv, float* u, int64_t u_stride) {
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t j = 0; j < dv; ++j) {
        u[t * u_stride + j] = v.data[t * v.stride + j] - u[t * u_stride + j];
      }
    }
  }

  static void Blend(float memory_share, float local_share, InfiniRows local, int64_t count,
                    int64_t dv, float* mix, int64_t mix_stride) {
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t j = 0; j < dv; ++j) {
        float& value = mix[t * mix_stride + j];
        value = memory_share * value + local_share * local.data[t * local.stride + j];
      }
    }
  }

  static void Commit(int64_t n, float* pending, float* total) {
    for (int64_t i = 0; i < n; ++i) {
      total[i] += pending[i];
      pending[i] = 0;
    }
  }
};

}  // namespace

void InfiniFeatureMap(Exec& exec, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::exp(std::min(x[i], 0.0f)) + std::max(x[i], 0.0f);
}

void InfiniMix(Exec& exec, const InfiniMixShape& shape, std::span<const InfiniMixArgs> batch) {
  MixInfini<InfiniOps>(exec, shape, batch);
}

}  // namespace mneme::engine::reference
