#include "engine/arch/titans/memory_layer.h"

#include <utility>

namespace mneme::engine::titans {

void MemoryLayer::Convolve(const Pass& pass, int64_t layer,
                           std::span<const Convolution> convolutions) {
  const int64_t dm = config_.memory_width();
  convolutions_.clear();
  for (const Convolution& convolution : convolutions) {
    for (const Sequence& sequence : pass.sequences) {
      convolutions_.push_back({.taps = convolution.taps,
                               .num_taps = config_.conv_taps,
                               .width = dm,
                               .norm_heads = convolution.normalize ? config_.memory_heads : 0,
                               .kept = states_.Floats(*sequence.state, layer, convolution.tensor),
                               .position = sequence.position,
                               .rows = sequence.count,
                               .x = convolution.projected + sequence.first * dm,
                               .y = convolution.out + sequence.first * dm});
    }
  }
  pass.exec.kernels().short_conv(pass.exec, convolutions_);
}

void MemoryLayer::Rates(const Pass& pass, float* z) const {
  pass.exec.kernels().titans_rates(pass.exec,
                                   {.heads = config_.memory_heads,
                                    .theta_max = config_.theta_max,
                                    .eta_max = config_.eta_max,
                                    .gate_floor = config_.gate_floor,
                                    .forget = config_.forget},
                                   pass.T, z);
}

void MemoryLayer::Apply(const Pass& pass, int64_t layer, const MemoryWeights& weights,
                        const MemoryRows& rows) {
  const int64_t H = config_.memory_heads, dm = config_.memory_width();
  const LayerTensors& tensors = states_.tensors();
  TitansMemoryLayer shared{.memory = config_.memory,
                           .heads = H,
                           .chunk_tokens = config_.chunk_tokens,
                           .token_mode = config_.token_mode,
                           .gradient_clip = config_.gradient_clip};
  if (config_.decay_to_init) {
    for (const std::vector<float>& init : weights.init) shared.target.push_back(init.data());
  }
  if (!weights.gain.empty()) shared.gain = weights.gain.data();
  memories_.clear();
  for (const Sequence& sequence : pass.sequences) {
    State& state = *sequence.state;
    const auto matrices = [&](const std::vector<int>& indices) {
      std::vector<float*> at;
      for (const int index : indices) at.push_back(states_.Floats(state, layer, index));
      return at;
    };
    TitansMemoryArgs args{.committed = matrices(tensors.memory),
                          .momentum = matrices(tensors.momentum),
                          .running = matrices(tensors.running),
                          .pending_k = states_.Floats(state, layer, tensors.pending_k),
                          .pending_v = states_.Floats(state, layer, tensors.pending_v),
                          .pending_rates = states_.Floats(state, layer, tensors.pending_rates),
                          .position = sequence.position,
                          .rows = sequence.count,
                          .q = rows.q + sequence.first * dm,
                          .y = rows.y + sequence.first * dm};
    if (rows.k != nullptr) {
      args.k = rows.k + sequence.first * dm;
      args.v = rows.v + sequence.first * dm;
      args.rates = rows.rates + sequence.first * 3 * H;
    }
    memories_.push_back(std::move(args));
  }
  pass.exec.kernels().titans_memory(pass.exec, shared, memories_);
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
