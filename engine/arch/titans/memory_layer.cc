#include "engine/arch/titans/memory_layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mneme::engine::titans {

// One head of one sequence: its rows of the pass and its part of the state.
struct MemoryLayer::Head {
  const Sequence* sequence = nullptr;
  int64_t index = 0;                 // of the head
  std::vector<float*> committed;     // [depth], weights of the last commit
  std::vector<float*> momentum;      // [depth]
  std::vector<float*> running;       // [depth], token mode
  std::vector<const float*> target;  // [depth], null: zeros
  const float* gain = nullptr;
  float* pending_k = nullptr;  // [b - 1] rows of stride dm, this head's columns
  float* pending_v = nullptr;
  float* pending_rates = nullptr;  // [b - 1, 3 H], all heads
};

void MemoryLayer::Convolve(const Pass& pass, int64_t layer, int tensor,
                           const std::vector<float>& taps, const float* projected, bool normalize,
                           float* out) {
  const int64_t K = config_.conv_taps, dm = config_.memory_width();
  const int64_t tail = K - 1;
  for (const Sequence& sequence : pass.sequences) {
    const float* first = projected + sequence.first * dm;
    float* kept = tensor < 0 ? nullptr : states_.Floats(*sequence.state, layer, tensor);
    scratch_.Prepare(pass.exec.pool().num_threads());
    constexpr int64_t kRowsPerTask = 8;  // an exponential per channel
    pass.exec.pool().Run(
        (sequence.count + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int worker) {
          // Scratch for K pointers.
          static_assert(sizeof(const float*) <= 2 * sizeof(float));
          auto** rows = reinterpret_cast<const float**>(scratch_.Get(worker, 2 * K));
          const int64_t end = std::min(sequence.count, (task + 1) * kRowsPerTask);
          for (int64_t t = task * kRowsPerTask; t < end; ++t) {
            for (int64_t k = 0; k < K; ++k) {
              const int64_t at = t - tail + k;
              // Rows of negative positions have never been written: they are zero.
              const int64_t position = sequence.position + at;
              rows[k] = at >= 0 ? first + at * dm : kept + ((position % tail + tail) % tail) * dm;
            }
            float* y = out + (sequence.first + t) * dm;
            pass.kernels.convolve(rows, taps.data(), K, dm, y);
            if (normalize) pass.kernels.normalize(y, config_.memory_heads, config_.memory.width);
          }
        });
    for (int64_t t = std::max<int64_t>(0, sequence.count - tail); t < sequence.count; ++t) {
      std::memcpy(kept + (sequence.position + t) % tail * dm, first + t * dm, dm * sizeof(float));
    }
  }
}

void MemoryLayer::Rates(const Pass& pass, float* z) const {
  const int64_t H = config_.memory_heads;
  pass.exec.kernels().activate(pass.exec, Activation::kSigmoid, z, pass.T * 3 * H, z);
  const float floor = config_.gate_floor;
  const auto gate = [floor](float s) { return std::max(0.0f, s - floor) / (1 - floor); };
  for (int64_t t = 0; t < pass.T; ++t) {
    float* row = z + t * 3 * H;
    for (int64_t h = 0; h < H; ++h) {
      row[h] = config_.theta_max * gate(row[h]);
      row[H + h] *= config_.eta_max;
      row[2 * H + h] = config_.forget ? gate(row[2 * H + h]) : 0.0f;
    }
  }
}

void MemoryLayer::Apply(const Pass& pass, int64_t layer, const MemoryWeights& weights,
                        const MemoryRows& rows) {
  const int64_t H = config_.memory_heads, e = config_.memory.width, depth = config_.memory.depth;
  const LayerTensors& tensors = states_.tensors();
  scratch_.Prepare(pass.exec.pool().num_threads());
  const auto tasks = static_cast<int64_t>(pass.sequences.size()) * H;
  pass.exec.pool().Run(tasks, [&](int64_t task, int worker) {
    Head head;
    head.sequence = &pass.sequences[task / H];
    head.index = task % H;
    State& state = *head.sequence->state;
    for (int64_t l = 0; l < depth; ++l) {
      const int64_t at = head.index * config_.memory.Elements(l);
      head.committed.push_back(states_.Floats(state, layer, tensors.memory[l]) + at);
      head.momentum.push_back(states_.Floats(state, layer, tensors.momentum[l]) + at);
      if (config_.token_mode) {
        head.running.push_back(states_.Floats(state, layer, tensors.running[l]) + at);
      }
      head.target.push_back(config_.decay_to_init ? weights.init[l].data() + at : nullptr);
    }
    if (!weights.gain.empty()) head.gain = weights.gain.data() + head.index * e;
    if (tensors.pending_k >= 0) {
      head.pending_k = states_.Floats(state, layer, tensors.pending_k) + head.index * e;
      head.pending_v = states_.Floats(state, layer, tensors.pending_v) + head.index * e;
      head.pending_rates = states_.Floats(state, layer, tensors.pending_rates);
    }
    if (config_.token_mode) {
      TokenHead(pass, head, rows, worker);
    } else {
      ChunkHead(pass, head, rows, worker);
    }
  });
}

// Run by run: a run ends with its chunk, so that all of its rows see the same weights.
void MemoryLayer::ChunkHead(const Pass& pass, const Head& head, const MemoryRows& rows,
                            int worker) {
  const MemoryShape& shape = config_.memory;
  const int64_t e = shape.width, dm = config_.memory_width(), H = config_.memory_heads;
  const int64_t b = config_.chunk_tokens, h = head.index;
  const MemoryView memory{&shape, head.committed.data(), head.gain};
  const Sequence& sequence = *head.sequence;
  for (int64_t t = 0; t < sequence.count;) {
    const int64_t slot = (sequence.position + t) % b;
    const int64_t count = std::min(sequence.count - t, b - slot);
    const int64_t row = sequence.first + t;
    const auto of = [&](const float* array) { return Rows{array + row * dm + h * e, dm}; };
    pass.kernels.read(memory, of(rows.q), count, rows.y + row * dm + h * e, dm,
                      scratch_.Get(worker, 2 * count * shape.Widest()));
    t += count;
    if (rows.k == nullptr) continue;

    const Rows k = of(rows.k), v = of(rows.v);
    const auto rate = [&](int64_t i, int64_t which) {  // row i of the run
      return rows.rates[(row + i) * 3 * H + which * H + h];
    };
    for (int64_t i = 0; i < count && slot + i < b - 1; ++i) {
      std::memcpy(head.pending_k + (slot + i) * dm, k.data + i * dm, e * sizeof(float));
      std::memcpy(head.pending_v + (slot + i) * dm, v.data + i * dm, e * sizeof(float));
      for (int64_t which = 0; which < 3; ++which) {
        head.pending_rates[(slot + i) * 3 * H + which * H + h] = rate(i, which);
      }
    }
    if (slot + count < b) continue;

    const int64_t elements = Gradients::Elements(shape, b);
    float* scratch = scratch_.Get(worker, elements + 5 * b + 2 * b * shape.Widest());
    const Gradients gradients{scratch, b};
    float* chunk_rates = scratch + elements;  // [3, b]
    for (int64_t which = 0; which < 3; ++which) {
      float* out = chunk_rates + which * b;
      for (int64_t i = 0; i < b - 1; ++i) {
        out[i] = head.pending_rates[i * 3 * H + which * H + h];
      }
      out[b - 1] = rate(count - 1, which);
    }
    // Rows of earlier passes from the state, the others from this one.
    if (slot > 0) {
      pass.kernels.gradient(memory, {head.pending_k, dm}, {head.pending_v, dm}, 0, slot,
                            config_.gradient_clip, gradients);
    }
    pass.kernels.gradient(memory, k, v, slot, count, config_.gradient_clip, gradients);
    Commit(pass, head, gradients, chunk_rates, b, chunk_rates + 3 * b);
  }
}

// What eqs. 13 and 14 give after all rows, from the last one back; nothing is divided.
void MemoryLayer::Commit(const Pass& pass, const Head& head, const Gradients& gradients,
                         const float* rates, int64_t count, float* scratch) const {
  const MemoryShape& shape = config_.memory;
  const float* theta = rates;
  const float* eta = rates + count;
  const float* alpha = rates + 2 * count;
  const float* scale = gradients.Scale(shape);
  float* weight_rates = scratch;
  float* momentum_rates = scratch + count;
  float kept = 1, weight = 1, momentum = 1;  // products of 1 - alpha; a_j; epsilon_j
  for (int64_t j = count - 1;; --j) {
    weight_rates[j] = theta[j] * scale[j] * weight;
    momentum_rates[j] = theta[j] * scale[j] * momentum;
    // From row j to what was there before it.
    momentum *= eta[j];
    weight *= eta[j];
    kept *= 1 - alpha[j];
    if (j == 0) break;
    weight += kept;
  }
  for (int64_t l = 0; l < shape.depth; ++l) {
    pass.kernels.commit({.inputs = shape.Inputs(l),
                         .outputs = shape.Outputs(l),
                         .rows = count,
                         .input = gradients.Input(shape, l),
                         .delta = gradients.Delta(shape, l),
                         .weight_rates = weight_rates,
                         .momentum_rates = momentum_rates,
                         .keep = kept,
                         .carry = weight,
                         .momentum_keep = momentum,
                         .target = head.target[l],
                         .weights = head.committed[l],
                         .momentum = head.momentum[l],
                         .scratch = scratch + 2 * count});
  }
}

// The gradients of a run are formed together, at the weights of the last commit; the updates follow
// row by row, matrix by matrix, each row's query multiplied as soon as its weights are there.
void MemoryLayer::TokenHead(const Pass& pass, const Head& head, const MemoryRows& rows,
                            int worker) {
  const MemoryShape& shape = config_.memory;
  const int64_t e = shape.width, dm = config_.memory_width(), H = config_.memory_heads;
  const int64_t b = config_.chunk_tokens, h = head.index;
  const MemoryView committed{&shape, head.committed.data(), head.gain};
  const MemoryView running{&shape, head.running.data(), head.gain};
  const Sequence& sequence = *head.sequence;
  for (int64_t t = 0; t < sequence.count;) {
    const int64_t slot = (sequence.position + t) % b;
    const int64_t count = std::min(sequence.count - t, b - slot);
    const int64_t row = sequence.first + t;
    const auto of = [&](const float* array) { return Rows{array + row * dm + h * e, dm}; };
    const int64_t elements = Gradients::Elements(shape, count);
    float* scratch = scratch_.Get(worker, elements + 3 * count + 2 * count * shape.Widest());
    const Gradients gradients{scratch, count};
    pass.kernels.gradient(committed, of(rows.k), of(rows.v), 0, count, config_.gradient_clip,
                          gradients);
    float* rates = scratch + elements;  // [3, count]
    const float* scale = gradients.Scale(shape);
    for (int64_t i = 0; i < count; ++i) {
      const float* rate = rows.rates + (row + i) * 3 * H + h;
      rates[i] = rate[0] * scale[i];
      rates[count + i] = rate[H];
      rates[2 * count + i] = rate[2 * H];
    }
    Rows x = of(rows.q);
    float* y = rates + 3 * count;
    float* spare = y + count * shape.Widest();
    for (int64_t l = 0; l < shape.depth; ++l) {
      pass.kernels.step({.inputs = shape.Inputs(l),
                         .outputs = shape.Outputs(l),
                         .rows = count,
                         .input = gradients.Input(shape, l),
                         .delta = gradients.Delta(shape, l),
                         .theta = rates,
                         .eta = rates + count,
                         .alpha = rates + 2 * count,
                         .target = head.target[l],
                         .weights = head.running[l],
                         .momentum = head.momentum[l],
                         .x = x,
                         .y = y});
      if (l + 1 < shape.depth) {
        pass.kernels.activate(shape.activation, y, count * shape.Outputs(l));
      }
      x = {y, shape.Outputs(l)};
      std::swap(y, spare);
    }
    pass.kernels.finish(running, x.data, of(rows.q), count, rows.y + row * dm + h * e, dm);
    if (slot + count == b) {
      for (int64_t l = 0; l < shape.depth; ++l) {
        std::memcpy(head.committed[l], head.running[l], shape.Elements(l) * sizeof(float));
      }
    }
    t += count;
  }
}

void MemoryLayer::Output(const Pass& pass, const MemoryOutput& weights, const float* x, float* y,
                         float* gate, float* out, bool accumulate) const {
  const Kernels& kernels = pass.exec.kernels();
  const int64_t dm = config_.memory_width();
  kernels.rms_norm(pass.exec, y, weights.norm.data(), config_.rms_eps,
                   pass.T * config_.memory_heads, config_.memory.width, y);
  const MatMulTask gate_task = Product(weights.gate, gate);
  kernels.matmul(pass.exec, {&gate_task, 1}, x, config_.width, pass.T);
  kernels.silu_mul(pass.exec, gate, y, pass.T * dm, y);
  const MatMulTask output_task = Product(weights.output, out, accumulate);
  kernels.matmul(pass.exec, {&output_task, 1}, y, dm, pass.T);
}

}  // namespace mneme::engine::titans
