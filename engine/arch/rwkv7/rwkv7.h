// RWKV-7 "Goose" (Peng et al. 2025, arXiv:2503.14456): a recurrent network whose memory is a
// matrix per head, corrected by the delta rule with data-dependent decay and learning rate.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/rwkv7/weights.h"
#include "engine/arch/rwkv_arch.h"

namespace mneme::engine::rwkv7 {

class Rwkv7 final : public rwkv::RwkvArch {
 public:
  // The checkpoint is kept alive for the weights that point into it.
  Rwkv7(std::shared_ptr<const Checkpoint> checkpoint, Weights weights);

 private:
  std::vector<StepBuffers::Part> TimeMixArrays(int64_t T) override;
  void TimeMix(Exec& exec, const Pass& pass, int64_t layer) override;

  std::vector<rwkv7::TimeMix> layers_;
  int64_t max_rank_ = 0;         // of all low-rank maps
  std::vector<Wkv7Args> scans_;  // one per slice
  // Of one pass, [T, C]:
  float* r_ = nullptr;
  float* w_ = nullptr;
  float* k_ = nullptr;
  float* v_ = nullptr;
  float* a_ = nullptr;
  float* gate_ = nullptr;
  float* kappa_ = nullptr;
  float* v_mix_ = nullptr;
  float* v_first_ = nullptr;  // layer 0's v
  float* y_ = nullptr;
  float* low_ = nullptr;  // [T, max_rank_]
};

}  // namespace mneme::engine::rwkv7
