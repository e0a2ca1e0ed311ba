// Attention of Titans: a sliding window behind persistent tokens (mag, mal), and inside a segment
// over persistent tokens, the memory's answers and the segment's own rows (mac). Rotations happen
// here; engine/kernels/titans_attention.h describes the rest.
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

  const Config& config_;
  const StateMap& states_;
  std::vector<int64_t> positions_, shifted_;
  std::vector<TitansAttentionArgs> attention_;
};

}  // namespace mneme::engine::titans
