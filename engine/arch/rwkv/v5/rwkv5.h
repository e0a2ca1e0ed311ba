// RWKV-5 "Eagle" (Peng et al. 2024, arXiv:2404.05892), versions 5.1 and 5.2: a recurrent network
// whose memory is a matrix per head with learned decays.
#pragma once

#include <memory>
#include <vector>

#include "engine/arch/rwkv/rwkv_arch.h"
#include "engine/arch/rwkv/v5/weights.h"

namespace mneme::engine::rwkv5 {

class Rwkv5 final : public rwkv::RwkvArch {
 public:
  // The checkpoint is kept alive for the weights that point into it.
  Rwkv5(std::shared_ptr<const Checkpoint> checkpoint, Weights weights);

 private:
  std::vector<Arena::Part> TimeMixRows(int64_t T) override;
  void TimeMix(Exec& exec, const Pass& pass, int64_t layer) override;

  std::vector<rwkv5::TimeMix> layers_;
  // Of one pass, [T, C].
  Rows mixed_r_, mixed_k_, mixed_v_, mixed_gate_;
  Rows r_, k_, v_, gate_, y_;
};

}  // namespace mneme::engine::rwkv5
