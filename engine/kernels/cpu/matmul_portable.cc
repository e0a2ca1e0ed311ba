// Matrix products for processors without AVX2: plain loops that a compiler can vectorise. Products
// are rounded before they are added, because a software fused multiply-add would be a hundred times
// slower; the bits therefore differ from the other targets', whatever processor runs this.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/kernels/cpu/matmul_micro.h"
#include "engine/kernels/dequantize.h"

namespace mneme::engine::cpu {
namespace {

void QuantizeRow(const float* x, const QuantizedRows& out) {
  for (int64_t b = 0; b < out.blocks; ++b) {
    const float* in = x + b * kCodeBlock;
    int8_t* q = out.q + b * kCodeBlock;
    float max = 0;
    bool finite = true;
    for (int e = 0; e < kCodeBlock; ++e) {
      finite = finite && std::isfinite(in[e]);
      max = std::max(max, std::fabs(in[e]));
    }
    const float d = max / 127.0f;
    if (!finite || d < std::numeric_limits<float>::min()) {
      std::memset(q, 0, kCodeBlock);
      out.d[b] = out.s[b] = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
      out.sum[b] = 0;
      continue;
    }
    int sum = 0;
    for (int e = 0; e < kCodeBlock; ++e) {
      q[e] = static_cast<int8_t>(std::nearbyint(in[e] / d));
      sum += q[e];
    }
    out.d[b] = d;
    out.s[b] = d * static_cast<float>(sum);
    out.sum[b] = sum;
  }
}

float* Output(const RowSpan& span, int64_t row, int64_t t) {
  return span.y + t * span.y_stride + row;
}

void RowsF32(const RowSpan& span, const float* x, int64_t x_stride, int64_t T, std::byte* scratch) {
  const int64_t K = span.weight->columns;
  auto* w = reinterpret_cast<float*>(scratch);
  for (int64_t row = 0; row < span.rows; ++row) {
    DequantizeRow(span.weight->dtype,
                  span.weight->data + (span.row + row) * span.weight->row_bytes(), K, w);
    for (int64_t t = 0; t < T; ++t) {
      const float* in = x + t * x_stride;
      float s[8] = {};
      int64_t k = 0;
      for (; k + 8 <= K; k += 8) {
        for (int l = 0; l < 8; ++l) s[l] += w[k + l] * in[k + l];
      }
      for (; k < K; ++k) s[k % 8] += w[k] * in[k];
      const float sum = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
      float* y = Output(span, row, t);
      *y = Finished(span, row, *y, sum);
    }
  }
}

void RowsInt8(const RowSpan& span, const QuantizedRows& x, int64_t T, std::byte* scratch) {
  const Weight& weight = *span.weight;
  const int offset = CodeOffset(weight.dtype);
  const bool has_min = HasMin(weight.dtype);
  const int link = weight.dtype == DType::kQ6_K ? 16 : 32;
  auto* blocks = reinterpret_cast<CodeBlock*>(scratch);
  static_assert(sizeof(CodeBlock) <= 8 * sizeof(float) * kCodeBlock, "a row fits the scratch");
  for (int64_t row = 0; row < span.rows; ++row) {
    const std::byte* data = weight.data + (span.row + row) * weight.row_bytes();
    for (int64_t b = 0; b < x.blocks; ++b) UnpackCodes(weight.dtype, data, b, &blocks[b]);
    for (int64_t t = 0; t < T; ++t) {
      const QuantizedRows in = x.From(t);
      float a = 0;
      float m = 0;
      for (int64_t b = 0; b < x.blocks; ++b) {
        const int8_t* q = in.q + b * kCodeBlock;
        for (int begin = 0; begin < kCodeBlock; begin += link) {
          int dot = 0;
          for (int e = begin; e < begin + link; ++e) dot += (blocks[b].code[e] - offset) * q[e];
          a += static_cast<float>(dot) * (blocks[b].scale[begin / 16] * in.d[b]);
        }
        m += blocks[b].min * in.s[b];
      }
      const float sum = has_min ? a + m : a;
      float* y = Output(span, row, t);
      *y = Finished(span, row, *y, sum);
    }
  }
}

constexpr MatMulMicro kMicro = {QuantizeRow, RowsF32, RowsInt8};

}  // namespace

const MatMulMicro& PortableMatMulMicro() { return kMicro; }

}  // namespace mneme::engine::cpu
