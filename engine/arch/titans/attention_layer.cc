#include "engine/arch/titans/attention_layer.h"

#include <array>
#include <cmath>

namespace mneme::engine::titans {

void AttentionLayer::Rotate(Exec& exec, std::span<const Rows> rows,
                            std::span<const int64_t> positions) const {
  ops::Rope(exec, rows,
            {.head_dim = config_.head_dim,
             .rotary_dim = config_.head_dim,
             .layout = config_.rope_layout,
             .theta = config_.rope_theta},
            positions);
}

void AttentionLayer::Apply(Exec& exec, const Batch& batch, int64_t layer,
                           const AttentionWeights& weights, const AttentionRows& rows) {
  const bool segments = config_.IsContext();
  const LayerTensors& tensors = states_.tensors();
  std::vector<ops::TitansStream> streams;
  ops::Copy(exec, rows.q, rows.q_rotated);
  if (segments) {
    // In a segment of C tokens the memory's answers stand before the text.
    const int64_t C = config_.chunk_tokens;
    positions_.clear();
    shifted_.clear();
    for (const int64_t position : batch.positions) {
      positions_.push_back(position % C);
      shifted_.push_back(position % C + C);
    }
    Rotate(exec, {&rows.h_k, 1}, positions_);
    streams.push_back(
        {states_.Field(layer, tensors.h_k), states_.Field(layer, tensors.h_v), rows.h_k, rows.h_v});
    streams.push_back(
        {states_.Field(layer, tensors.x_k), states_.Field(layer, tensors.x_v), rows.k, rows.v});
  } else {
    streams.push_back(
        {states_.Field(layer, tensors.k), states_.Field(layer, tensors.v), rows.k, rows.v});
  }
  const std::span<const int64_t> own = segments ? shifted_ : batch.positions;
  Rotate(exec, std::array{rows.q_rotated, rows.k}, own);
  ops::Attend(exec, batch.runs,
              ops::TitansAttention{
                  .heads = config_.attention_heads,
                  .head_dim = config_.head_dim,
                  .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(config_.head_dim))),
                  .persistent_tokens = config_.persistent_tokens,
                  .persistent_k = weights.persistent_k,
                  .persistent_v = weights.persistent_v,
                  .window = segments ? config_.chunk_tokens : config_.window_tokens,
                  .segments = segments,
                  .streams = streams,
                  .q = rows.q,
                  .q_rotated = rows.q_rotated,
                  .out = rows.out});
}

}  // namespace mneme::engine::titans
