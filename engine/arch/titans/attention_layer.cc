#include "engine/arch/titans/attention_layer.h"

#include <cmath>

namespace mneme::engine::titans {

void AttentionLayer::Rotate(const Pass& pass, float* x,
                            const std::vector<int64_t>& positions) const {
  pass.exec.kernels().rope(pass.exec, {.x = x,
                                       .x_stride = config_.width,
                                       .heads = config_.attention_heads,
                                       .head_dim = config_.head_dim,
                                       .rotary_dim = config_.head_dim,
                                       .layout = config_.rope_layout,
                                       .positions = positions,
                                       .theta = config_.rope_theta});
}

void AttentionLayer::Apply(const Pass& pass, int64_t layer, const AttentionWeights& weights,
                           const AttentionRows& rows) {
  const Kernels& kernels = pass.exec.kernels();
  const int64_t D = config_.width, C = config_.chunk_tokens;
  const bool segments = config_.IsContext();
  positions_.clear();
  shifted_.clear();
  for (const Sequence& sequence : pass.sequences) {
    for (int64_t t = 0; t < sequence.count; ++t) {
      const int64_t n = sequence.position + t;
      positions_.push_back(segments ? n % C : n);
      shifted_.push_back(n % C + C);
    }
  }
  const CopyRowsArgs copy{.from = rows.q,
                          .from_stride = D,
                          .to = rows.q_rotated,
                          .to_stride = D,
                          .rows = pass.T,
                          .width = D};
  kernels.copy_rows(pass.exec, {&copy, 1});
  // In a segment the memory's answers stand before the text.
  const std::vector<int64_t>& own = segments ? shifted_ : positions_;
  Rotate(pass, rows.q_rotated, own);
  Rotate(pass, rows.k, own);
  if (segments) Rotate(pass, rows.h_k, positions_);

  const LayerTensors& tensors = states_.tensors();
  attention_.clear();
  for (const Sequence& sequence : pass.sequences) {
    State& state = *sequence.state;
    const int64_t at = sequence.first * D;
    const auto stream = [&](int k_tensor, int v_tensor, float* k, float* v) {
      return TitansKeyStream{.kept_k = states_.Bytes(state, layer, k_tensor),
                             .kept_v = states_.Bytes(state, layer, v_tensor),
                             .k = k + at,
                             .v = v + at};
    };
    TitansAttentionArgs args{.position = sequence.position,
                             .rows = sequence.count,
                             .q = rows.q + at,
                             .q_rotated = rows.q_rotated + at,
                             .out = rows.out + at};
    if (segments) {
      args.num_streams = 2;
      args.streams = {stream(tensors.h_k, tensors.h_v, rows.h_k, rows.h_v),
                      stream(tensors.x_k, tensors.x_v, rows.k, rows.v)};
    } else {
      args.streams[0] = stream(tensors.k, tensors.v, rows.k, rows.v);
    }
    attention_.push_back(args);
  }
  kernels.titans_attention(
      pass.exec,
      {.heads = config_.attention_heads,
       .head_dim = config_.head_dim,
       .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(config_.head_dim))),
       .persistent_tokens = config_.persistent_tokens,
       .persistent_k = weights.persistent_k.data(),
       .persistent_v = weights.persistent_v.data(),
       .window = segments ? C : config_.window_tokens,
       .segments = segments,
       .dtype = states_.kv_dtype()},
      attention_);
}

}  // namespace mneme::engine::titans
