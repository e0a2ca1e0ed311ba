// Attention of Titans: a sliding window behind persistent tokens (mag, mal), and inside a segment
// over persistent tokens, the memory's answers and the segment's own rows (mac). One softmax, scale
// 1 / sqrt(hd), persistent keys first, then the others in ascending order.
//
// Keys and values that the state will hold are rounded to its type before use, so that a row means
// the same in the call that brings it and in later ones.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/arch/titans/config.h"
#include "engine/arch/titans/pass.h"
#include "engine/arch/titans/state.h"
#include "engine/arch/titans/weights.h"

namespace mneme::engine::titans {

// Rows [T, D] of one pass, as the projections left them; overwritten.
struct AttentionRows {
  float* q = nullptr;
  float* q_rotated = nullptr;  // scratch
  float* k = nullptr;
  float* v = nullptr;
  // mac: the memory's answers through k_proj and v_proj.
  float* h_k = nullptr;
  float* h_v = nullptr;
  float* out = nullptr;  // before o_proj; distinct from the others
};

class AttentionLayer {
 public:
  // Both must outlive this.
  AttentionLayer(const Config& config, const StateMap& states) : config_(config), states_(states) {}

  void Apply(const Pass& pass, int64_t layer, const AttentionWeights& weights,
             const AttentionRows& rows);

 private:
  void Rotate(const Pass& pass, float* x, const std::vector<int64_t>& positions) const;
  void Round(const Pass& pass, float* x) const;
  void WindowHead(const Pass& pass, int64_t layer, const AttentionWeights& weights,
                  const AttentionRows& rows, const Sequence& sequence, int64_t head, int worker);
  void SegmentHead(const Pass& pass, int64_t layer, const AttentionWeights& weights,
                   const AttentionRows& rows, const Sequence& sequence, int64_t head, int worker);
  // Rows [first, first + count) of a state tensor, columns of one head, as f32: where they lie, or
  // converted into `scratch` [count, hd].
  Rows Stored(const Pass& pass, const std::byte* tensor, int64_t head, int64_t first, int64_t count,
              float* scratch) const;
  void Store(const Pass& pass, const float* row, int64_t head, int64_t slot,
             std::byte* tensor) const;
  int64_t Converted(int64_t rows) const;  // elements of scratch for Stored

  const Config& config_;
  const StateMap& states_;
  WorkerScratch scratch_;
  std::vector<int64_t> positions_, shifted_;
};

}  // namespace mneme::engine::titans
