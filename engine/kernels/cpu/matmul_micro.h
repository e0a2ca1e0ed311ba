// The inner products behind cpu matmul: a few rows of one weight against a few activation rows, on
// one thread. One table per instruction set; all follow the sums of contract.h.
//
// Written in intrinsics rather than Highway: version 1.0.3 has no 8-bit dot products, and a fixed
// vector of eight lanes is what makes every machine with AVX2 or later give the same bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "engine/core/dtype.h"

namespace mneme::engine::cpu {

// Activation rows under Contract::kInt8. B = K / 32 blocks.
struct QuantizedRows {
  int8_t* q = nullptr;     // [T, K]
  float* d = nullptr;      // [T, B]
  float* s = nullptr;      // [T, B] d * sum of the block's q
  int32_t* sum = nullptr;  // [T, B]
  int64_t K = 0;
  int64_t blocks = 0;

  QuantizedRows From(int64_t t) const {
    return {q + t * K, d + t * blocks, s + t * blocks, sum + t * blocks, K, blocks};
  }
};

// Rows [row, row + rows) of `weight`; y points at [0, row] of the output, tokens y_stride apart,
// and bias at [row], unless it is null.
struct RowSpan {
  const Weight* weight;
  int64_t row;
  int64_t rows;
  float* y;
  int64_t y_stride;
  bool accumulate;
  // Neither bias nor scale, as most products: a flag that no store to y can be suspected to change,
  // so that the loops over outputs need not look at the other two.
  bool plain;
  const float* bias;
  float scale;
  // What this thread is likely to read afterwards: rows up to `stream_end` of the same weight, then
  // from `next` (may be null). For prefetching only.
  int64_t stream_end;
  const std::byte* next;
};

// What row `row` of the span becomes where `y` was, from the product's finished sum.
inline float Finished(const RowSpan& span, int64_t row, float y, float sum) {
  if (span.plain) return span.accumulate ? y + sum : sum;
  sum *= span.scale;
  if (span.bias == nullptr) return span.accumulate ? y + sum : sum;
  const float start = span.accumulate ? y + span.bias[row] : span.bias[row];
  return start + sum;
}

// How far ahead of a step of eight rows weights are asked for.
inline size_t PrefetchDistance(size_t row_bytes) {
  return std::min<size_t>(8 * row_bytes, 16 << 10) + 2048;
}

struct MatMulMicro {
  void (*quantize_row)(const float* x, const QuantizedRows& out);  // into row 0 of `out`
  // `scratch` has MicroScratchBytes(K), 64-byte aligned.
  void (*rows_f32)(const RowSpan& span, const float* x, int64_t x_stride, int64_t T,
                   std::byte* scratch);
  void (*rows_int8)(const RowSpan& span, const QuantizedRows& x, int64_t T, std::byte* scratch);
};

// Eight rows in f32, the most a kernel unpacks at once.
inline size_t MicroScratchBytes(int64_t K) {
  return (static_cast<size_t>(K) + 64) * 8 * sizeof(float);
}

const MatMulMicro& PortableMatMulMicro();  // any processor; products rounded before sums
#if defined(__x86_64__)
const MatMulMicro& Avx2MatMulMicro();
const MatMulMicro& VnniMatMulMicro();  // the same bits as Avx2
#endif

}  // namespace mneme::engine::cpu
