// RWKV-6 "Finch" (Peng et al. 2024, arXiv:2404.05892): a recurrent network whose memory is a matrix
// per head, with blends of neighbouring tokens and decays that depend on the data.
#pragma once

#include <memory>
#include <vector>

#include "engine/arch/rwkv/rwkv_arch.h"
#include "engine/arch/rwkv/v6/weights.h"

namespace mneme::engine::rwkv6 {

class Rwkv6 final : public rwkv::RwkvArch {
 public:
  // The checkpoint is kept alive for the weights that point into it.
  Rwkv6(std::shared_ptr<const Checkpoint> checkpoint, Weights weights);

 private:
  std::vector<Arena::Part> TimeMixRows(int64_t T) override;
  void TimeMix(Exec& exec, const Pass& pass, int64_t layer) override;

  std::vector<rwkv6::TimeMix> layers_;
  int64_t max_mix_rows_ = 0;    // 5 R, the largest of all layers
  int64_t max_decay_rank_ = 0;  // the largest of all layers
  // Of one pass, [T, C]; share_ is the data-dependent part of one mix.
  Rows r_, k_, v_, gate_, decay_, share_, y_;
  Rows mix_low_;    // [T, max_mix_rows_]
  Rows decay_low_;  // [T, max_decay_rank_]
};

}  // namespace mneme::engine::rwkv6
