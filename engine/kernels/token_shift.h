// Token shift of RWKV (Peng et al. 2023, arXiv:2305.13048): a token's input blended with the input
// of the token before it in the same sequence.
#pragma once

#include <cstdint>
#include <span>

namespace mneme::engine {

class Exec;

struct TokenShiftArgs {
  const float* x = nullptr;   // [T, C] contiguous, T >= 1
  float* previous = nullptr;  // [C], of the state: x of the token before; left as the last row of x
  float* delta = nullptr;     // [T, C]: delta[t] = x[t - 1] - x[t]; must not alias x
  int64_t T = 0;
  int64_t C = 0;
};

// One entry per sequence.
using TokenShiftFn = void (*)(Exec& exec, std::span<const TokenShiftArgs> batch);

struct LerpArgs {
  const float* x = nullptr;        // [T, C]
  const float* delta = nullptr;    // [T, C]
  const float* mu = nullptr;       // [C]
  const float* dynamic = nullptr;  // [T, C], row stride dynamic_stride, or null
  int64_t dynamic_stride = 0;
  int64_t T = 0;
  int64_t C = 0;
  float* y = nullptr;  // [T, C]; may be dynamic if its stride is C
};

// y = x + delta * (mu + dynamic), elementwise. One entry per blend, all of the same shape; no entry
// reads what another one writes.
using LerpFn = void (*)(Exec& exec, std::span<const LerpArgs> batch);

}  // namespace mneme::engine
