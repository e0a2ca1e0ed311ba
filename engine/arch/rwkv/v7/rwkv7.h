// RWKV-7 "Goose" (Peng et al. 2025, arXiv:2503.14456): a recurrent network whose memory is a
// matrix per head, corrected by the delta rule with data-dependent decay and learning rate.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/rwkv/rwkv_arch.h"
#include "engine/arch/rwkv/v7/weights.h"

namespace mneme::engine::rwkv7 {

class Rwkv7 final : public rwkv::RwkvArch {
 public:
  // The checkpoint is kept alive for the weights that point into it.
  Rwkv7(std::shared_ptr<const Checkpoint> checkpoint, Weights weights);

 private:
  std::vector<Arena::Part> TimeMixRows(int64_t T) override;
  void TimeMix(Exec& exec, const Pass& pass, int64_t layer) override;

  std::vector<rwkv7::TimeMix> layers_;
  int64_t max_rank_ = 0;  // of all low-rank maps
  // Of one pass, [T, C]; v_first_ is layer 0's v.
  std::array<Rows, 6> mixed_;  // blends for r, w, k, v, a, gate
  Rows r_, w_, k_, v_, a_, gate_, kappa_, v_mix_, v_first_, y_;
  Rows low_;  // [T, max_rank_]
};

}  // namespace mneme::engine::rwkv7
