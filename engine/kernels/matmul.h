// Products of activations with weights as stored (F32, F16, BF16 and all quantised types).
//
//   y[t, n]  =  start + scale * sum_k W[n, k] * x[t, k]
//
// where start is what y held (accumulate), bias[n], or the sum of both, formed first; nothing is
// added to a product that has neither.
//
// Every output's reduction order is fixed by K and the weight type alone: it does not depend on T,
// on N, on what else is in the call or on the number of threads. So a row's bits are the same in
// prefill and decode (decoders.md section 0, level B).
#pragma once

#include <cstdint>
#include <span>

#include "engine/core/dtype.h"

namespace mneme::engine {

class Exec;

// One product of a call. All products of a call read the same x.
struct MatMulTask {
  Weight weight;                // [N, K]
  float* y = nullptr;           // [T, N], row stride y_stride; must not alias x
  int64_t y_stride = 0;         // elements
  bool accumulate = false;      // adds the finished sum to what y holds
  const float* bias = nullptr;  // [N], or null
  float scale = 1;              // of the finished sum
};

// x: [T, K] f32, row stride x_stride (elements), 64-byte alignment not required. T >= 1; every
// task's weight.columns is K. One call per shared input (q, k, v; gate, up) quantises x once and
// forks once. Under Contract::kInt8 quantised weights use integer block products (see contract.h).
// NaN or infinity in x gives NaN in that row's y and in no other.
using MatMulFn = void (*)(Exec& exec, std::span<const MatMulTask> tasks, const float* x,
                          int64_t x_stride, int64_t T);

}  // namespace mneme::engine
