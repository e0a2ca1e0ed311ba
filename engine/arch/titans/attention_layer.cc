#include "engine/arch/titans/attention_layer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

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

void AttentionLayer::Round(const Pass& pass, float* x) const {
  if (states_.kv_dtype() == DType::kF32) return;
  const int64_t D = config_.width;
  pass.exec.pool().Run(
      pass.T, [&](int64_t t, int) { pass.kernels.round(x + t * D, states_.kv_dtype(), D); });
}

int64_t AttentionLayer::Converted(int64_t rows) const {
  return states_.kv_dtype() == DType::kF32 ? 0 : rows * config_.head_dim;
}

Rows AttentionLayer::Stored(const Pass& pass, const std::byte* tensor, int64_t head, int64_t first,
                            int64_t count, float* scratch) const {
  const int64_t D = config_.width, hd = config_.head_dim;
  const int64_t at = first * D + head * hd;
  if (states_.kv_dtype() == DType::kF32) return {reinterpret_cast<const float*>(tensor) + at, D};
  pass.kernels.load(tensor + 2 * at, DType::kF16, D, count, hd, scratch);
  return {scratch, hd};
}

void AttentionLayer::Store(const Pass& pass, const float* row, int64_t head, int64_t slot,
                           std::byte* tensor) const {
  const DType dtype = states_.kv_dtype();
  const int64_t at = slot * config_.width + head * config_.head_dim;
  pass.kernels.store(row, dtype, config_.head_dim, tensor + at * (dtype == DType::kF16 ? 2 : 4));
}

void AttentionLayer::Apply(const Pass& pass, int64_t layer, const AttentionWeights& weights,
                           const AttentionRows& rows) {
  const int64_t D = config_.width, C = config_.chunk_tokens, heads = config_.attention_heads;
  positions_.clear();
  shifted_.clear();
  for (const Sequence& sequence : pass.sequences) {
    for (int64_t t = 0; t < sequence.count; ++t) {
      const int64_t n = sequence.position + t;
      positions_.push_back(config_.IsContext() ? n % C : n);
      shifted_.push_back(n % C + C);
    }
  }
  std::memcpy(rows.q_rotated, rows.q, pass.T * D * sizeof(float));
  const std::vector<int64_t>& own = config_.IsContext() ? shifted_ : positions_;
  Rotate(pass, rows.q_rotated, own);
  Rotate(pass, rows.k, own);
  Round(pass, rows.k);
  Round(pass, rows.v);
  if (config_.IsContext()) {
    Rotate(pass, rows.h_k, positions_);
    Round(pass, rows.h_k);
    Round(pass, rows.h_v);
  }
  scratch_.Prepare(pass.exec.pool().num_threads());
  const auto tasks = static_cast<int64_t>(pass.sequences.size()) * heads;
  pass.exec.pool().Run(tasks, [&](int64_t task, int worker) {
    const Sequence& sequence = pass.sequences[task / heads];
    if (config_.IsContext()) {
      SegmentHead(pass, layer, weights, rows, sequence, task % heads, worker);
    } else {
      WindowHead(pass, layer, weights, rows, sequence, task % heads, worker);
    }
  });
}

void AttentionLayer::WindowHead(const Pass& pass, int64_t layer, const AttentionWeights& weights,
                                const AttentionRows& rows, const Sequence& sequence, int64_t head,
                                int worker) {
  const int64_t D = config_.width, hd = config_.head_dim, W = config_.window_tokens;
  const int64_t Np = config_.persistent_tokens, ring = W - 1;
  const LayerTensors& tensors = states_.tensors();
  std::byte* k_ring = states_.Bytes(*sequence.state, layer, tensors.k);
  std::byte* v_ring = states_.Bytes(*sequence.state, layer, tensors.v);
  // Older rows, in two pieces where the ring wraps: positions [oldest, middle) and [middle, n).
  const int64_t n = sequence.position;
  const int64_t oldest = std::max<int64_t>(0, n - ring), old = n - oldest;
  const int64_t middle = std::min(n, (oldest / ring + 1) * ring);
  const int64_t scores = ScoreElements(Np + std::min(W, old + sequence.count));
  float* scratch = scratch_.Get(worker, scores + 2 * Converted(old));
  float* k_scratch = scratch + scores;
  float* v_scratch = k_scratch + Converted(old);
  const int64_t split = Converted(middle - oldest);
  const int64_t first_slot = oldest % ring;
  const Rows old_k[2] = {Stored(pass, k_ring, head, first_slot, middle - oldest, k_scratch),
                         Stored(pass, k_ring, head, 0, n - middle, k_scratch + split)};
  const Rows old_v[2] = {Stored(pass, v_ring, head, first_slot, middle - oldest, v_scratch),
                         Stored(pass, v_ring, head, 0, n - middle, v_scratch + split)};
  const int64_t begins[2] = {oldest, middle}, ends[2] = {middle, n};
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(hd)));
  const int64_t column = head * hd;
  const float* new_k = rows.k + sequence.first * D + column;
  const float* new_v = rows.v + sequence.first * D + column;
  for (int64_t t = 0; t < sequence.count; ++t) {
    const int64_t begin = std::max<int64_t>(0, n + t - W + 1);  // first visible position
    std::array<KeyRun, 4> runs;
    size_t count = 0;
    if (Np > 0) {
      runs[count++] = {weights.persistent_k.data() + column, weights.persistent_v.data() + column,
                       D, Np, /*rotated=*/false};
    }
    for (int piece = 0; piece < 2; ++piece) {
      const int64_t skip = std::max<int64_t>(0, begin - begins[piece]);
      const int64_t visible = ends[piece] - begins[piece] - skip;
      if (visible <= 0) continue;
      runs[count++] = {old_k[piece].data + skip * old_k[piece].stride,
                       old_v[piece].data + skip * old_v[piece].stride, old_k[piece].stride,
                       visible};
    }
    const int64_t skip = std::max<int64_t>(0, begin - n);
    runs[count++] = {new_k + skip * D, new_v + skip * D, D, t + 1 - skip};
    const int64_t at = (sequence.first + t) * D + column;
    pass.kernels.attend(rows.q + at, rows.q_rotated + at, {runs.data(), count}, hd, scale, scratch,
                        rows.out + at);
  }
  for (int64_t t = std::max<int64_t>(0, sequence.count - ring); t < sequence.count; ++t) {
    Store(pass, new_k + t * D, head, (n + t) % ring, k_ring);
    Store(pass, new_v + t * D, head, (n + t) % ring, v_ring);
  }
}

// The pass does not leave the segment.
void AttentionLayer::SegmentHead(const Pass& pass, int64_t layer, const AttentionWeights& weights,
                                 const AttentionRows& rows, const Sequence& sequence, int64_t head,
                                 int worker) {
  const int64_t D = config_.width, hd = config_.head_dim, C = config_.chunk_tokens;
  const int64_t Np = config_.persistent_tokens, old = sequence.position % C;
  const LayerTensors& tensors = states_.tensors();
  const auto tensor = [&](int index) { return states_.Bytes(*sequence.state, layer, index); };
  std::byte* const kept[4] = {tensor(tensors.h_k), tensor(tensors.h_v), tensor(tensors.x_k),
                              tensor(tensors.x_v)};
  const int64_t column = head * hd, first = sequence.first * D + column;
  const float* const fresh[4] = {rows.h_k + first, rows.h_v + first, rows.k + first,
                                 rows.v + first};
  const int64_t scores = ScoreElements(Np + 2 * (old + sequence.count));
  float* scratch = scratch_.Get(worker, scores + 4 * Converted(old));
  Rows before[4];
  for (int i = 0; i < 4; ++i) {
    before[i] = Stored(pass, kept[i], head, 0, old, scratch + scores + i * Converted(old));
  }
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(hd)));
  for (int64_t t = 0; t < sequence.count; ++t) {
    std::array<KeyRun, 5> runs;
    size_t count = 0;
    if (Np > 0) {
      runs[count++] = {weights.persistent_k.data() + column, weights.persistent_v.data() + column,
                       D, Np, /*rotated=*/false};
    }
    for (const int kind : {0, 2}) {
      if (old > 0) {
        runs[count++] = {before[kind].data, before[kind + 1].data, before[kind].stride, old};
      }
      runs[count++] = {fresh[kind], fresh[kind + 1], D, t + 1};
    }
    const int64_t at = first + t * D;
    pass.kernels.attend(rows.q + at, rows.q_rotated + at, {runs.data(), count}, hd, scale, scratch,
                        rows.out + at);
  }
  for (int64_t t = 0; t < sequence.count && old + t < C - 1; ++t) {
    for (int i = 0; i < 4; ++i) Store(pass, fresh[i] + t * D, head, old + t, kept[i]);
  }
}

}  // namespace mneme::engine::titans
