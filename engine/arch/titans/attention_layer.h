// Attention of Titans: a sliding window behind persistent tokens (mag, mal), and inside a segment
// over persistent tokens, the memory's answers and the segment's own rows (mac). Rotations happen
// here; engine/kernels/titans_attention.h describes the rest.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/arch/titans/config.h"
#include "engine/arch/titans/state.h"
#include "engine/arch/titans/weights.h"
#include "engine/kernels/ops.h"

namespace mneme::engine::titans {

// Rows [T, D] of one pass, as the projections left them; overwritten.
struct AttentionRows {
  Rows q;
  Rows q_rotated;  // scratch
  Rows k, v;
  // mac: the memory's answers through k_proj and v_proj.
  Rows h_k, h_v;
  Rows out;  // before o_proj; distinct from the others
};

class AttentionLayer {
 public:
  // Both must outlive this.
  AttentionLayer(const Config& config, const StateMap& states) : config_(config), states_(states) {}

  void Apply(Exec& exec, const Batch& batch, int64_t layer, const AttentionWeights& weights,
             const AttentionRows& rows);

 private:
  void Rotate(Exec& exec, std::span<const Rows> rows, std::span<const int64_t> positions) const;

  const Config& config_;
  const StateMap& states_;
  std::vector<int64_t> positions_, shifted_;  // in a segment
};

}  // namespace mneme::engine::titans
