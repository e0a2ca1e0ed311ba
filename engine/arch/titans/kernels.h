// What Titans computes besides products with weights, norms and rotations: the short convolutions,
// reading one head's memory, the gradient of its loss in closed form, the update of its weights,
// and attention over a few runs of keys (Behrouz et al. 2024, arXiv:2501.00663).
//
// One head's memory is a small MLP whose weights are the state. For a row x:
//   a_0 = x,  z_l = a_{l-1} W_l,  a_l = act(z_l) between the matrices,  f = z_D
//   M(x) = N(f) + x (residual) or N(f);  N: nothing, or an RMS or layer norm with a gain
//
// Every function works on one thread; heads and sequences are the caller's to spread. An element's
// bits depend on its operands and the shapes alone, never on how many rows a call has: rows may be
// cut into calls anywhere. Rows are f32 and `stride` elements apart; no alignment is required.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "engine/core/dtype.h"

namespace mneme::engine::titans {

enum class MemoryActivation { kSilu, kGeluTanh, kGeluErf };
enum class MemoryNorm { kNone, kRms, kLayer };

struct MemoryShape {
  int64_t depth = 0;   // D, matrices
  int64_t width = 0;   // e
  int64_t hidden = 0;  // h, width between the matrices; unused if depth is 1
  MemoryActivation activation = MemoryActivation::kSilu;
  bool residual = true;
  MemoryNorm norm = MemoryNorm::kNone;
  float eps = 0;  // of the norm

  int64_t Inputs(int64_t l) const { return l == 0 ? width : hidden; }
  int64_t Outputs(int64_t l) const { return l == depth - 1 ? width : hidden; }
  int64_t Elements(int64_t l) const { return Inputs(l) * Outputs(l); }
  // Weights of one memory.
  int64_t Parameters() const {
    int64_t sum = 0;
    for (int64_t l = 0; l < depth; ++l) sum += Elements(l);
    return sum;
  }
  int64_t Widest() const { return depth > 1 && hidden > width ? hidden : width; }
};

// One head's memory at some moment.
struct MemoryView {
  const MemoryShape* shape = nullptr;
  const float* const* weights = nullptr;  // [depth], W_l [Inputs(l), Outputs(l)]
  const float* gain = nullptr;            // [e], of the norm; null without one
};

struct Rows {
  const float* data = nullptr;
  int64_t stride = 0;
};

// The gradient of 1/2 |M(k) - v|^2 with respect to W_l is the outer product of a row of `input` and
// a row of `delta`. Arrays of `capacity` rows, one behind the other in a block of Elements() f32.
struct Gradients {
  float* block = nullptr;
  int64_t capacity = 0;

  static int64_t Elements(const MemoryShape& shape, int64_t capacity) {
    int64_t width = 1;
    for (int64_t l = 0; l < shape.depth; ++l) width += shape.Inputs(l) + shape.Outputs(l);
    return width * capacity;
  }
  float* Input(const MemoryShape& shape, int64_t l) const {  // [capacity, Inputs(l)]
    int64_t before = 0;
    for (int64_t i = 0; i < l; ++i) before += shape.Inputs(i) + shape.Outputs(i);
    return block + before * capacity;
  }
  float* Delta(const MemoryShape& shape, int64_t l) const {  // [capacity, Outputs(l)]
    return Input(shape, l) + shape.Inputs(l) * capacity;
  }
  // What the clip multiplies each row's learning rate by, [capacity]: min(1, c / |gradient|).
  float* Scale(const MemoryShape& shape) const { return Input(shape, shape.depth); }
};

// b rows of one matrix at once; A the inputs, Delta the deltas:
//   W = W + (1 - keep) (T - W) + carry S - A^T diag(weight_rates) Delta      (W = T if keep is 0)
//   S = momentum_keep S - A^T diag(momentum_rates) Delta
struct CommitArgs {
  int64_t inputs = 0;
  int64_t outputs = 0;
  int64_t rows = 0;
  const float* input = nullptr;           // [rows, inputs]
  const float* delta = nullptr;           // [rows, outputs]
  const float* weight_rates = nullptr;    // [rows]
  const float* momentum_rates = nullptr;  // [rows]
  float keep = 0;
  float carry = 0;
  float momentum_keep = 0;
  const float* target = nullptr;  // T [inputs, outputs]; null: zeros
  float* weights = nullptr;       // W [inputs, outputs]
  float* momentum = nullptr;      // S [inputs, outputs]
  float* scratch = nullptr;       // 2 * rows * inputs
};

// Row by row, one matrix: an update, then a product with the new weights.
//   S = eta S - theta outer(input, delta);  M = M + alpha (T - M) + S;  y = x M
struct StepArgs {
  int64_t inputs = 0;
  int64_t outputs = 0;
  int64_t rows = 0;
  const float* input = nullptr;   // [rows, inputs]
  const float* delta = nullptr;   // [rows, outputs]
  const float* theta = nullptr;   // [rows], clipped
  const float* eta = nullptr;     // [rows]
  const float* alpha = nullptr;   // [rows]
  const float* target = nullptr;  // T; null: zeros
  float* weights = nullptr;       // M
  float* momentum = nullptr;      // S
  Rows x;                         // [rows, inputs]
  float* y = nullptr;             // [rows, outputs] contiguous
};

// Keys and values of one head that a query sees, in ascending order.
struct KeyRun {
  const float* k = nullptr;  // [count, hd]
  const float* v = nullptr;  // [count, hd]
  int64_t stride = 0;
  int64_t count = 0;
  bool rotated = true;  // meets the rotated query
};

// Scratch for the scores of `keys` keys, padded to whole vectors.
inline constexpr int64_t ScoreElements(int64_t keys) { return (keys + 7) / 8 * 8; }

struct TitansKernels {
  std::string_view backend;

  // y[c] = silu(sum_k taps[k, c] * rows[k][c]), k ascending; taps [K, n].
  void (*convolve)(const float* const* rows, const float* taps, int64_t K, int64_t n, float* y);
  // Each of `heads` neighbours of `width`: x / sqrt(sum x^2 + 1e-6).
  void (*normalize)(float* x, int64_t heads, int64_t width);

  // y[t] = M(x[t]); scratch of 2 * count * shape.Widest().
  void (*read)(const MemoryView& memory, Rows x, int64_t count, float* y, int64_t y_stride,
               float* scratch);
  // Rows [first, first + count) of `out` from keys and values; clip 0: no clip. Rates of a gradient
  // that f32 cannot hold become 0.
  void (*gradient)(const MemoryView& memory, Rows k, Rows v, int64_t first, int64_t count,
                   float clip, const Gradients& out);
  void (*commit)(const CommitArgs& args);
  void (*step)(const StepArgs& args);
  // In place on rows [count, n] contiguous: the activation between the matrices.
  void (*activate)(MemoryActivation f, float* x, int64_t n);
  // y[t] = N(f[t]) + x[t] or N(f[t]), the end of M; f [count, e] contiguous.
  void (*finish)(const MemoryView& memory, const float* f, Rows x, int64_t count, float* y,
                 int64_t y_stride);

  // One query: out[d] = sum_j softmax_j(scale q . k_j) v_j[d] over all runs.
  void (*attend)(const float* q_plain, const float* q_rotated, std::span<const KeyRun> runs,
                 int64_t head_dim, float scale, float* scores, float* out);

  // Rows as a state stores them, of kF16 or kF32. Same bits on every backend.
  // out [count, n] = `count` rows of n that begin `stride` elements apart.
  void (*load)(const std::byte* rows, DType dtype, int64_t stride, int64_t count, int64_t n,
               float* out);
  // row[0, n) = x.
  void (*store)(const float* x, DType dtype, int64_t n, std::byte* row);
  // x[0, n) as it would come back.
  void (*round)(float* x, DType dtype, int64_t n);
};

// nullptr if the backend has no version of them.
const TitansKernels* FindTitansKernels(std::string_view backend);

const TitansKernels& ReferenceTitansKernels();
const TitansKernels& CpuTitansKernels();

}  // namespace mneme::engine::titans
