#include "engine/arch/titans/memory_layer.h"

#include <vector>

namespace mneme::engine::titans {

void MemoryLayer::Convolve(Exec& exec, std::span<const Run> runs, int64_t layer,
                           std::span<const ShortConvolution> convolutions) const {
  std::vector<ops::Convolution> batch;
  for (const ShortConvolution& convolution : convolutions) {
    batch.push_back({.kept = states_.Field(layer, convolution.tensor),
                     .taps = convolution.taps,
                     .num_taps = config_.conv_taps,
                     .norm_heads = convolution.normalize ? config_.memory_heads : 0,
                     .x = convolution.projected,
                     .y = convolution.out});
  }
  ops::Convolve(exec, runs, batch);
}

void MemoryLayer::Rates(Exec& exec, Rows z) const {
  ops::TitansRates(exec,
                   {.heads = config_.memory_heads,
                    .theta_max = config_.theta_max,
                    .eta_max = config_.eta_max,
                    .gate_floor = config_.gate_floor,
                    .forget = config_.forget},
                   z);
}

void MemoryLayer::Apply(Exec& exec, std::span<const Run> runs, int64_t layer,
                        const MemoryWeights& weights, const MemoryRows& rows) const {
  const LayerTensors& tensors = states_.tensors();
  const auto fields = [&](const std::vector<int>& indices) {
    std::vector<StateField> matrices;
    for (const int index : indices) matrices.push_back(states_.Field(layer, index));
    return matrices;
  };
  ops::TitansMemory memory{.shape = config_.memory,
                           .heads = config_.memory_heads,
                           .chunk_tokens = config_.chunk_tokens,
                           .token_mode = config_.token_mode,
                           .gradient_clip = config_.gradient_clip,
                           .committed = fields(tensors.memory),
                           .momentum = fields(tensors.momentum),
                           .running = fields(tensors.running),
                           .pending_k = states_.Field(layer, tensors.pending_k),
                           .pending_v = states_.Field(layer, tensors.pending_v),
                           .pending_rates = states_.Field(layer, tensors.pending_rates),
                           .target = {},
                           .gain = weights.gain,
                           .q = rows.q,
                           .k = rows.k,
                           .v = rows.v,
                           .rates = rows.rates,
                           .y = rows.y};
  if (config_.decay_to_init) memory.target = weights.init;
  ops::ReadAndWrite(exec, runs, memory);
}

void MemoryLayer::Output(Exec& exec, const MemoryOutput& weights, Rows x, Rows y, Rows gate,
                         Rows out, bool accumulate) const {
  const Rows heads = y.Split(config_.memory_heads);
  ops::RmsNorm(exec, heads, weights.norm, config_.rms_eps, heads);
  ops::MatMul(exec, x, {weights.gate, gate});
  ops::SiluMul(exec, gate, y, y);
  ops::MatMul(exec, y, {.weight = weights.output, .y = out, .accumulate = accumulate});
}

}  // namespace mneme::engine::titans
