// Causal convolution of each channel with a few taps, as Titans and Mamba's relatives have it in
// front of their memories, with its SiLU and, where wanted, each head's division by its norm:
//   c[t] = silu(sum_k taps[k] * x[t - (K - 1) + k]), k ascending;  x of negative positions is 0
//   y[t] = c[t], or per head c[t] / sqrt(|c[t]|^2 + 1e-6)
// An element's bits do not depend on how rows were cut into calls.
#pragma once

#include <cstdint>
#include <span>

namespace mneme::engine {

class Exec;

// Rows of one sequence.
struct ShortConvArgs {
  const float* taps = nullptr;  // [K, width]; the last one meets the row itself
  int64_t num_taps = 0;         // K
  int64_t width = 0;
  int64_t norm_heads = 0;  // neighbours of width / norm_heads that are normalised; 0: no norm
  // Of the state; updated. [K - 1, width]: the row of position p is row p mod (K - 1). Zeros before
  // the first token; null with one tap.
  float* kept = nullptr;
  int64_t position = 0;      // of the first row
  int64_t rows = 0;          // T
  const float* x = nullptr;  // [T, width]
  float* y = nullptr;        // [T, width]; overwritten, not x
};

// `batch` holds one entry per sequence and convolution. Threads are shared over all rows.
using ShortConvFn = void (*)(Exec& exec, std::span<const ShortConvArgs> batch);

}  // namespace mneme::engine
