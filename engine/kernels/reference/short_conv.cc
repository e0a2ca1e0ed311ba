// The equations as written, one scalar at a time.
#include <cmath>

#include "engine/kernels/reference/reference.h"
#include "engine/kernels/short_conv_plan.h"

namespace mneme::engine::reference {
namespace {

struct ShortConvOps {
  static void Convolve(const float* const* rows, const float* taps, int64_t K, int64_t n,
                       float* y) {
    for (int64_t c = 0; c < n; ++c) {
      float sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += taps[k * n + c] * rows[k][c];
      y[c] = sum * (1.0f / (1.0f + std::exp(-sum)));
    }
  }

  static void Normalize(float* x, int64_t heads, int64_t width) {
    for (int64_t h = 0; h < heads; ++h, x += width) {
      float squares = 0;
      for (int64_t i = 0; i < width; ++i) squares += x[i] * x[i];
      const float norm = std::sqrt(squares + 1e-6f);
      for (int64_t i = 0; i < width; ++i) x[i] /= norm;
    }
  }
};

}  // namespace

void ShortConv(Exec& exec, std::span<const ShortConvArgs> batch) {
  RunShortConv<ShortConvOps>(exec, batch);
}

}  // namespace mneme::engine::reference
