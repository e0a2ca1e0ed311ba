// The equations as written, one scalar at a time.
#include <algorithm>
#include <cmath>

#include "engine/kernels/reference/reference.h"
#include "engine/kernels/reference/stored_element.h"
#include "engine/kernels/titans_attention_plan.h"

namespace mneme::engine::reference {
namespace {

struct AttentionOps {
  static void Attend(const float* q_plain, const float* q_rotated, std::span<const TitansKeys> runs,
                     int64_t head_dim, float scale, float* scores, float* out) {
    float max = -INFINITY;
    int64_t keys = 0;
    for (const TitansKeys& run : runs) {
      const float* q = run.rotated ? q_rotated : q_plain;
      for (int64_t j = 0; j < run.count; ++j) {
        float dot = 0;
        for (int64_t d = 0; d < head_dim; ++d) dot += q[d] * run.k[j * run.stride + d];
        scores[keys] = scale * dot;
        max = std::max(max, scores[keys++]);
      }
    }
    float total = 0;
    for (int64_t j = 0; j < keys; ++j) {
      scores[j] = std::exp(scores[j] - max);
      total += scores[j];
    }
    for (int64_t d = 0; d < head_dim; ++d) {
      float sum = 0;
      int64_t key = 0;
      for (const TitansKeys& run : runs) {
        for (int64_t j = 0; j < run.count; ++j) sum += scores[key++] * run.v[j * run.stride + d];
      }
      out[d] = sum / total;
    }
  }

  static void Load(const std::byte* rows, DType dtype, int64_t stride, int64_t count, int64_t n,
                   float* out) {
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t i = 0; i < n; ++i) out[j * n + i] = ReadElement(rows, dtype, j * stride + i);
    }
  }

  static void Store(const float* x, DType dtype, int64_t n, std::byte* row) {
    for (int64_t i = 0; i < n; ++i) WriteElement(x[i], dtype, i, row);
  }

  static void Round(float* x, DType dtype, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = RoundElement(x[i], dtype);
  }
};

}  // namespace

void TitansAttention(Exec& exec, const TitansAttentionLayer& layer,
                     std::span<const TitansAttentionArgs> batch) {
  RunTitansAttention<AttentionOps>(exec, layer, batch);
}

}  // namespace mneme::engine::reference
