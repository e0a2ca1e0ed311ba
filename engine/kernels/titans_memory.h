// The neural memory of Titans (Behrouz et al. 2024, arXiv:2501.00663, sections 3.1 and 4.4). One
// head's memory is a small MLP whose weights W_0 .. W_{D-1} are part of a sequence's state. For a
// row x:
//   a_0 = x,  z_l = a_{l-1} W_l,  a_l = act(z_l) between the matrices,  f = z_D
//   M(x) = N(f) + x (residual) or N(f);  N: nothing, or an RMS or layer norm with a gain
// A row (k, v) with the rates theta, eta, alpha is written by a step of gradient descent on
// 1/2 |M(k) - v|^2, whose gradient g is that at the weights of the last commit, clipped:
//   S = eta S - theta g,  W = (1 - alpha) W + alpha target + S
// Every b positions are a chunk. In chunk mode its rows wait in the state and are committed
// together behind its last token; in token mode the running weights take every row at once, and are
// what is committed behind the chunk. A row reads what the last commit left, or the running weights
// with itself in them.
//
// An element's bits depend on its operands and the shapes alone, never on how many rows a call has:
// a sequence may be cut into calls anywhere. All arrays are f32.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mneme::engine {

class Exec;

enum class TitansActivation { kSilu, kGeluTanh, kGeluErf };
enum class TitansNorm { kNone, kRms, kLayer };

// One head's memory.
struct TitansMemoryShape {
  int64_t depth = 0;   // D, matrices
  int64_t width = 0;   // e
  int64_t hidden = 0;  // h, width between the matrices; unused if depth is 1
  TitansActivation activation = TitansActivation::kSilu;
  bool residual = true;
  TitansNorm norm = TitansNorm::kNone;
  float eps = 0;  // of the norm

  constexpr int64_t Inputs(int64_t l) const { return l == 0 ? width : hidden; }
  constexpr int64_t Outputs(int64_t l) const { return l == depth - 1 ? width : hidden; }
  constexpr int64_t Elements(int64_t l) const { return Inputs(l) * Outputs(l); }
  // Weights of one memory.
  constexpr int64_t Parameters() const {
    int64_t sum = 0;
    for (int64_t l = 0; l < depth; ++l) sum += Elements(l);
    return sum;
  }
  constexpr int64_t Widest() const { return depth > 1 && hidden > width ? hidden : width; }
};

// From the gates' logits z to the rates, in place: z [T, 3, H] becomes theta, eta, alpha, with
// s = sigmoid(z) and gate(s) = max(0, s - gate_floor) / (1 - gate_floor):
//   theta = theta_max gate(s),  eta = eta_max s,  alpha = gate(s), or 0 without `forget`
struct TitansRatesArgs {
  int64_t heads = 0;  // H
  float theta_max = 0;
  float eta_max = 0;
  float gate_floor = 0;  // below 1
  bool forget = true;
};
using TitansRatesFn = void (*)(Exec& exec, const TitansRatesArgs& args, int64_t T, float* z);

// What all sequences of a call share.
struct TitansMemoryLayer {
  TitansMemoryShape memory;
  int64_t heads = 0;         // H
  int64_t chunk_tokens = 0;  // b
  bool token_mode = false;
  float gradient_clip = 0;  // longest gradient; 0: any
  // What weights decay to: [depth] of [H, Inputs(l), Outputs(l)]; empty: zeros.
  std::vector<const float*> target;
  const float* gain = nullptr;  // [H, e] of the norm; null without one
};

// Rows of one sequence.
struct TitansMemoryArgs {
  // Of the state; updated. [depth] of [H, Inputs(l), Outputs(l)].
  std::vector<float*> committed;
  std::vector<float*> momentum;
  std::vector<float*> running;  // token mode
  // Rows of the chunk that is being read, in chunk mode if b is above 1.
  float* pending_k = nullptr;      // [b - 1, H, e]
  float* pending_v = nullptr;      // [b - 1, H, e]
  float* pending_rates = nullptr;  // [b - 1, 3, H]

  int64_t position = 0;          // of the first row
  int64_t rows = 0;              // T
  const float* q = nullptr;      // [T, H, e]
  const float* k = nullptr;      // [T, H, e]; null: the memory is only read
  const float* v = nullptr;      // [T, H, e]
  const float* rates = nullptr;  // [T, 3, H]
  float* y = nullptr;            // [T, H, e]: M(q); overwritten
};

// `batch` holds one entry per sequence; states are distinct. Threads are shared over sequences and
// heads.
using TitansMemoryFn = void (*)(Exec& exec, const TitansMemoryLayer& layer,
                                std::span<const TitansMemoryArgs> batch);

}  // namespace mneme::engine
