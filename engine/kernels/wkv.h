// The recurrent memories of RWKV-4 (Peng et al. 2023, arXiv:2305.13048), RWKV-5 and 6 (Peng et al.
// 2024, arXiv:2404.05892) and RWKV-7 (Peng et al. 2025, arXiv:2503.14456).
//
// Token by token, whatever the length: any split of the input gives the same bits. State rows (or
// channels) are independent; threads share sequences and heads. All arrays are f32, rows of C
// elements, contiguous; head h is elements [h N, (h + 1) N).
#pragma once

#include <cstdint>
#include <span>

namespace mneme::engine {

class Exec;

// RWKV-4: per channel a weighted mean, kept as numerator and denominator over e^exponent.
//   q = max(p, u + k);  y = (e^(p-q) a + e^(u+k-q) v) / (e^(p-q) b + e^(u+k-q))
//   q = max(p + d, k);  a = e^(p+d-q) a + e^(k-q) v;  b = e^(p+d-q) b + e^(k-q);  p = q
struct Wkv4Args {
  float* numerator = nullptr;    // a [C]
  float* denominator = nullptr;  // b [C]
  float* exponent = nullptr;     // p [C]; finite at the start
  const float* decay = nullptr;  // d [C], negative
  const float* bonus = nullptr;  // u [C]
  const float* k = nullptr;      // [T, C]
  const float* v = nullptr;      // [T, C]
  float* y = nullptr;            // [T, C]; may be k or v
  int64_t T = 0;
  int64_t C = 0;
};
using Wkv4Fn = void (*)(Exec& exec, std::span<const Wkv4Args> batch);

// RWKV-5 and 6: per head a matrix S [value i][key j].
//   y_i = sum_j S[i,j] r_j + v_i sum_j u_j k_j r_j;  S[i,j] = d_j S[i,j] + v_i k_j
struct Wkv6Args {
  float* state = nullptr;        // [heads, N, N]
  const float* r = nullptr;      // [T, C]
  const float* k = nullptr;      // [T, C]
  const float* v = nullptr;      // [T, C]
  const float* decay = nullptr;  // d, row stride decay_stride: 0 for [C], C for [T, C]; in [0, 1]
  int64_t decay_stride = 0;
  const float* bonus = nullptr;  // u [C]
  float* y = nullptr;            // [T, C]; aliases nothing
  int64_t T = 0;
  int64_t heads = 0;
  int64_t head_size = 0;  // N
};
using Wkv6Fn = void (*)(Exec& exec, std::span<const Wkv6Args> batch);

// RWKV-7's inputs of the scan, from the outputs of the projections and low-rank maps. Per token:
//   v  = v + (first - v) sigmoid(mix)                  where mix is given
//   d  = e^(-e^-0.5 sigmoid(w));  a' = sigmoid(a)
//   kappa = k k_k, divided per head by max(|kappa|, 1e-12)
//   k  = k (1 + (a' - 1) k_a);   b = kappa a'
struct Wkv7PrepareArgs {
  float* w = nullptr;            // [T, C] in: omega; out: d
  float* a = nullptr;            // [T, C] in: before the sigmoid; out: b
  float* k = nullptr;            // [T, C] in: key; out: replacement key
  float* v = nullptr;            // [T, C]
  float* kappa = nullptr;        // [T, C] out
  const float* mix = nullptr;    // [T, C] or null
  const float* first = nullptr;  // [T, C], layer 0's v of the same tokens; with mix
  const float* k_k = nullptr;    // [C]
  const float* k_a = nullptr;    // [C]
  int64_t T = 0;
  int64_t heads = 0;
  int64_t head_size = 0;  // N
};
using Wkv7PrepareFn = void (*)(Exec& exec, const Wkv7PrepareArgs& args);

// RWKV-7: per head a matrix S [value i][key j].
//   s_i = -sum_j S[i,j] kappa_j;  S[i,j] = d_j S[i,j] + s_i b_j + v_i k_j;  y_i = sum_j S[i,j] r_j
struct Wkv7Args {
  float* state = nullptr;        // [heads, N, N]
  const float* r = nullptr;      // [T, C]
  const float* decay = nullptr;  // d [T, C]
  const float* k = nullptr;      // [T, C]
  const float* v = nullptr;      // [T, C]
  const float* kappa = nullptr;  // [T, C]
  const float* b = nullptr;      // [T, C]
  float* y = nullptr;            // [T, C]; aliases nothing
  int64_t T = 0;
  int64_t heads = 0;
  int64_t head_size = 0;  // N
};
using Wkv7Fn = void (*)(Exec& exec, std::span<const Wkv7Args> batch);

// RWKV-7's output: y[t, h] = (y[t, h] + v[t, h] sum_j r_j k_j r_k[h, j]) * gate[t, h].
struct Wkv7BonusArgs {
  const float* r = nullptr;     // [T, C]
  const float* k = nullptr;     // [T, C], the replacement key
  const float* v = nullptr;     // [T, C]
  const float* gate = nullptr;  // [T, C]
  const float* r_k = nullptr;   // [C]
  float* y = nullptr;           // [T, C], normalised
  int64_t T = 0;
  int64_t heads = 0;
  int64_t head_size = 0;  // N
};
using Wkv7BonusFn = void (*)(Exec& exec, const Wkv7BonusArgs& args);

}  // namespace mneme::engine
