// RWKV-4 (Peng et al. 2023, arXiv:2305.13048): a recurrent network whose memory is a weighted mean
// per channel, with learned decays.
//
// State of a layer besides the shifts: "numerator", "denominator" and "exponent" [C], the sums of
// the mean over e^exponent. The exponent starts at -1e30: so much below any key that the first one
// replaces it, and finite, so that differences of it are numbers.
#pragma once

#include <memory>
#include <vector>

#include "engine/arch/rwkv/rwkv_arch.h"
#include "engine/arch/rwkv/v4/weights.h"

namespace mneme::engine::rwkv4 {

class Rwkv4 final : public rwkv::RwkvArch {
 public:
  // The checkpoint is kept alive for the weights that point into it.
  Rwkv4(std::shared_ptr<const Checkpoint> checkpoint, Weights weights);

  void InitState(Exec& exec, StateSlot state) override;

 private:
  std::vector<Arena::Part> TimeMixRows(int64_t T) override;
  void TimeMix(Exec& exec, const Pass& pass, int64_t layer) override;

  std::vector<rwkv4::TimeMix> layers_;
  Vector exponent_;  // [C], what it starts at
  // Of one pass, [T, C].
  Rows mixed_r_, mixed_k_, mixed_v_;
  Rows r_, k_, v_;
};

}  // namespace mneme::engine::rwkv4
