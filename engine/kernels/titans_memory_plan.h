// The order of the parts of a call of titans_memory.h, shared by the backends.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "engine/kernels/host.h"
#include "engine/kernels/titans_memory.h"

namespace mneme::engine {

// One head's memory at some moment.
struct TitansMemoryView {
  const TitansMemoryShape* shape = nullptr;
  const float* const* weights = nullptr;  // [depth], W_l [Inputs(l), Outputs(l)]
  const float* gain = nullptr;            // [e], of the norm; null without one
};

// Rows `stride` elements apart; no alignment is required.
struct TitansRows {
  const float* data = nullptr;
  int64_t stride = 0;
};

// The gradient of 1/2 |M(k) - v|^2 with respect to W_l is the outer product of a row of `input` and
// a row of `delta`. Arrays of `capacity` rows, one behind the other in a block of Elements() f32.
struct TitansGradients {
  float* block = nullptr;
  int64_t capacity = 0;

  static constexpr int64_t Elements(const TitansMemoryShape& shape, int64_t capacity) {
    int64_t width = 1;
    for (int64_t l = 0; l < shape.depth; ++l) width += shape.Inputs(l) + shape.Outputs(l);
    return width * capacity;
  }
  constexpr float* Input(const TitansMemoryShape& shape,
                         int64_t l) const {  // [capacity, Inputs(l)]
    int64_t before = 0;
    for (int64_t i = 0; i < l; ++i) before += shape.Inputs(i) + shape.Outputs(i);
    return block + before * capacity;
  }
  constexpr float* Delta(const TitansMemoryShape& shape,
                         int64_t l) const {  // [capacity, Outputs(l)]
    return Input(shape, l) + shape.Inputs(l) * capacity;
  }
  // What the clip multiplies each row's learning rate by, [capacity]: min(1, c / |gradient|).
  constexpr float* Scale(const TitansMemoryShape& shape) const { return Input(shape, shape.depth); }
};

// b rows of one matrix at once; A the inputs, Delta the deltas:
//   W = W + (1 - keep) (T - W) + carry S - A^T diag(weight_rates) Delta      (W = T if keep is 0)
//   S = momentum_keep S - A^T diag(momentum_rates) Delta
struct TitansCommit {
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
struct TitansSteps {
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
  TitansRows x;                   // [rows, inputs]
  float* y = nullptr;             // [rows, outputs] contiguous
};

// One head of one sequence. `Ops` has, as static functions:
//   Read(memory, x, count, y, y_stride, scratch)   y[t] = M(x[t]); scratch of 2 * count * Widest()
//   Gradient(memory, k, v, first, count, clip, out)   rows [first, first + count) of `out`; clip 0:
//                                                  none; rates of a gradient that f32 cannot hold
//                                                  become 0
//   Commit(const TitansCommit&), Step(const TitansSteps&)
//   Activate(f, x, n)                              in place
//   Finish(memory, f, x, count, y, y_stride)       y[t] = N(f[t]) + x[t] or N(f[t]), the end of M
template <typename Ops>
class TitansHead {
 public:
  // `worker` has room for WorkerElements.
  TitansHead(const TitansMemoryLayer& layer, const TitansMemoryArgs& args, int64_t head,
             float* worker)
      : layer_(layer), shape_(layer.memory), args_(args), head_(head), worker_(worker) {
    for (int64_t l = 0; l < shape_.depth; ++l) {
      const int64_t at = head * shape_.Elements(l);
      committed_.push_back(args.committed[l] + at);
      if (layer.token_mode) running_.push_back(args.running[l] + at);
      if (args.k == nullptr) continue;
      momentum_.push_back(args.momentum[l] + at);
      target_.push_back(layer.target.empty() ? nullptr : layer.target[l] + at);
    }
    if (layer.gain != nullptr) gain_ = layer.gain + head * shape_.width;
  }

  // Of f32.
  static int64_t WorkerElements(const TitansMemoryLayer& layer, const TitansMemoryArgs& args) {
    const TitansMemoryShape& shape = layer.memory;
    const int64_t b = layer.chunk_tokens, count = std::min(args.rows, b);
    const int64_t read = 2 * count * shape.Widest();
    if (args.k == nullptr) return read;
    if (layer.token_mode) return TitansGradients::Elements(shape, count) + 3 * count + read;
    if (args.position % b + args.rows < b) return read;
    return std::max(read, TitansGradients::Elements(shape, b) + 5 * b + 2 * b * shape.Widest());
  }

  // Run by run: a run ends with its chunk, so that all of its rows see the same weights.
  void Run() {
    for (int64_t t = 0; t < args_.rows;) {
      const int64_t slot = (args_.position + t) % layer_.chunk_tokens;
      const int64_t count = std::min(args_.rows - t, layer_.chunk_tokens - slot);
      if (layer_.token_mode && args_.k != nullptr) {
        StepThrough(t, slot, count);
      } else {
        Ops::Read(layer_.token_mode ? Running() : Committed(), Of(args_.q, t), count, Answer(t),
                  Stride(), worker_);
        if (args_.k != nullptr) Collect(t, slot, count);
      }
      t += count;
    }
  }

 private:
  TitansMemoryView Committed() const { return {&shape_, committed_.data(), gain_}; }
  TitansMemoryView Running() const { return {&shape_, running_.data(), gain_}; }
  int64_t Stride() const { return layer_.heads * shape_.width; }
  TitansRows Of(const float* array, int64_t t) const {
    return {array + t * Stride() + head_ * shape_.width, Stride()};
  }
  float* Answer(int64_t t) const { return args_.y + t * Stride() + head_ * shape_.width; }
  // theta, eta, alpha of a row.
  std::array<float, 3> Rates(const float* rates, int64_t t) const {
    const float* row = rates + t * 3 * layer_.heads + head_;
    return {row[0], row[layer_.heads], row[2 * layer_.heads]};
  }

  // Rows into the chunk; behind its last one, the chunk into the weights.
  void Collect(int64_t t, int64_t slot, int64_t count) {
    const int64_t b = layer_.chunk_tokens, stride = Stride();
    const TitansRows k = Of(args_.k, t), v = Of(args_.v, t);
    const int64_t column = head_ * shape_.width;
    for (int64_t i = 0; i < count && slot + i < b - 1; ++i) {
      const int64_t at = (slot + i) * stride + column;
      std::memcpy(args_.pending_k + at, k.data + i * stride, shape_.width * sizeof(float));
      std::memcpy(args_.pending_v + at, v.data + i * stride, shape_.width * sizeof(float));
      const std::array rates = Rates(args_.rates, t + i);
      float* pending = args_.pending_rates + (slot + i) * 3 * layer_.heads + head_;
      for (int64_t which = 0; which < 3; ++which) pending[which * layer_.heads] = rates[which];
    }
    if (slot + count < b) return;

    const TitansGradients gradients{worker_, b};
    float* theta = worker_ + TitansGradients::Elements(shape_, b);
    for (int64_t i = 0; i < b; ++i) {
      const std::array rates =
          i < b - 1 ? Rates(args_.pending_rates, i) : Rates(args_.rates, t + count - 1);
      for (int64_t which = 0; which < 3; ++which) theta[which * b + i] = rates[which];
    }
    // Rows of earlier calls from the state, the others from this one.
    if (slot > 0) {
      Ops::Gradient(Committed(), {args_.pending_k + column, stride},
                    {args_.pending_v + column, stride}, 0, slot, layer_.gradient_clip, gradients);
    }
    Ops::Gradient(Committed(), k, v, slot, count, layer_.gradient_clip, gradients);
    CommitChunk(gradients, theta);
  }

  // What the recurrences of S and W give after all rows, from the last one back; nothing is
  // divided. rates [3, b], behind them room for 2 * b * (1 + Widest()).
  void CommitChunk(const TitansGradients& gradients, float* rates) {
    const int64_t b = layer_.chunk_tokens;
    const float* theta = rates;
    const float* eta = rates + b;
    const float* alpha = rates + 2 * b;
    const float* scale = gradients.Scale(shape_);
    float* weight_rates = rates + 3 * b;
    float* momentum_rates = rates + 4 * b;
    float kept = 1, weight = 1, momentum = 1;  // products of 1 - alpha; a_j; epsilon_j
    for (int64_t j = b - 1;; --j) {
      weight_rates[j] = theta[j] * scale[j] * weight;
      momentum_rates[j] = theta[j] * scale[j] * momentum;
      // From row j to what was there before it.
      momentum *= eta[j];
      weight *= eta[j];
      kept *= 1 - alpha[j];
      if (j == 0) break;
      weight += kept;
    }
    for (int64_t l = 0; l < shape_.depth; ++l) {
      Ops::Commit({.inputs = shape_.Inputs(l),
                   .outputs = shape_.Outputs(l),
                   .rows = b,
                   .input = gradients.Input(shape_, l),
                   .delta = gradients.Delta(shape_, l),
                   .weight_rates = weight_rates,
                   .momentum_rates = momentum_rates,
                   .keep = kept,
                   .carry = weight,
                   .momentum_keep = momentum,
                   .target = target_[l],
                   .weights = committed_[l],
                   .momentum = momentum_[l],
                   .scratch = rates + 5 * b});
    }
  }

  // Token mode. The gradients of a run are formed together, at the weights of the last commit; the
  // updates follow row by row, matrix by matrix, each row's query multiplied as soon as its weights
  // are there.
  void StepThrough(int64_t t, int64_t slot, int64_t count) {
    const TitansGradients gradients{worker_, count};
    Ops::Gradient(Committed(), Of(args_.k, t), Of(args_.v, t), 0, count, layer_.gradient_clip,
                  gradients);
    float* theta = worker_ + TitansGradients::Elements(shape_, count);  // [3, count]
    const float* scale = gradients.Scale(shape_);
    for (int64_t i = 0; i < count; ++i) {
      const std::array rates = Rates(args_.rates, t + i);
      theta[i] = rates[0] * scale[i];
      theta[count + i] = rates[1];
      theta[2 * count + i] = rates[2];
    }
    TitansRows x = Of(args_.q, t);
    float* y = theta + 3 * count;
    float* spare = y + count * shape_.Widest();
    for (int64_t l = 0; l < shape_.depth; ++l) {
      Ops::Step({.inputs = shape_.Inputs(l),
                 .outputs = shape_.Outputs(l),
                 .rows = count,
                 .input = gradients.Input(shape_, l),
                 .delta = gradients.Delta(shape_, l),
                 .theta = theta,
                 .eta = theta + count,
                 .alpha = theta + 2 * count,
                 .target = target_[l],
                 .weights = running_[l],
                 .momentum = momentum_[l],
                 .x = x,
                 .y = y});
      if (l + 1 < shape_.depth) Ops::Activate(shape_.activation, y, count * shape_.Outputs(l));
      x = {y, shape_.Outputs(l)};
      std::swap(y, spare);
    }
    Ops::Finish(Running(), x.data, Of(args_.q, t), count, Answer(t), Stride());
    if (slot + count < layer_.chunk_tokens) return;
    for (int64_t l = 0; l < shape_.depth; ++l) {
      std::memcpy(committed_[l], running_[l], shape_.Elements(l) * sizeof(float));
    }
  }

  const TitansMemoryLayer& layer_;
  const TitansMemoryShape& shape_;
  const TitansMemoryArgs& args_;
  const int64_t head_;
  float* const worker_;
  std::vector<float*> committed_, momentum_, running_;
  std::vector<const float*> target_;
  const float* gain_ = nullptr;
};

// Every head of every sequence, on the pool.
template <typename Ops>
void RunTitansMemory(Exec& exec, const TitansMemoryLayer& layer,
                     std::span<const TitansMemoryArgs> batch) {
  int64_t elements = 0;
  for (const TitansMemoryArgs& args : batch) {
    elements = std::max(elements, TitansHead<Ops>::WorkerElements(layer, args));
  }
  const auto workers = Host(exec).WorkerScratch(HostDevice::kTitansMemoryWorkers, elements);
  Host(exec).pool().Run(
      static_cast<int64_t>(batch.size()) * layer.heads, [&](int64_t task, int worker) {
        const TitansMemoryArgs& args = batch[task / layer.heads];
        TitansHead<Ops>(layer, args, task % layer.heads, workers.Of(worker)).Run();
      });
}

// The rates from the gates' sigmoids, in place.
inline void ScaleTitansRates(const TitansRatesArgs& args, int64_t T, float* s) {
  const auto gate = [&](float x) {
    return std::max(0.0f, x - args.gate_floor) / (1 - args.gate_floor);
  };
  const int64_t H = args.heads;
  for (int64_t t = 0; t < T; ++t, s += 3 * H) {
    for (int64_t h = 0; h < H; ++h) {
      s[h] = args.theta_max * gate(s[h]);
      s[H + h] *= args.eta_max;
      s[2 * H + h] = args.forget ? gate(s[2 * H + h]) : 0.0f;
    }
  }
}

}  // namespace mneme::engine
