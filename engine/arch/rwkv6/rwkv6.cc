#include "engine/arch/rwkv6/rwkv6.h"

#include <algorithm>
#include <utility>

#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::rwkv6 {

Rwkv6::Rwkv6(std::shared_ptr<const Checkpoint> checkpoint, Weights weights)
    : RwkvArch(std::move(checkpoint), std::move(weights.model), "rwkv6"),
      layers_(std::move(weights.time_mix)) {
  for (const rwkv6::TimeMix& layer : layers_) {
    max_mix_rows_ = std::max(max_mix_rows_, layer.mix_a.weight.rows);
    max_decay_rank_ = std::max(max_decay_rank_, layer.decay.rank());
  }
}

std::vector<StepBuffers::Part> Rwkv6::TimeMixArrays(int64_t T) {
  std::vector<StepBuffers::Part> parts = {{&mix_low_, T * max_mix_rows_},
                                          {&decay_low_, T * max_decay_rank_}};
  for (float** array : {&r_, &k_, &v_, &gate_, &decay_, &share_, &y_}) {
    parts.push_back({array, T * config().width});
  }
  return parts;
}

void Rwkv6::TimeMix(Exec& exec, const Pass& pass, int64_t index) {
  const Kernels& kernels = exec.kernels();
  const rwkv6::TimeMix& layer = layers_[index];
  const int64_t C = config().width, T = pass.T;
  const int64_t mix_rows = layer.mix_a.weight.rows;

  Blend(exec, pass, layer.mu_x);
  Project(exec, pass, layer.mix_a.weight, mix_low_);
  kernels.activate(exec, Activation::kTanh, mix_low_, T * mix_rows, mix_low_);
  // y = weight times mix i of the two tokens.
  const auto project = [&](MixIndex i, const Weight& weight, float* y) {
    const Weight& b = layer.mix_b[i].weight;
    rwkv::Multiply(exec, b, mix_low_ + i * b.columns, mix_rows, T, share_);
    Blend(exec, pass, layer.mu[i], share_);
    Project(exec, pass, weight, y);
  };
  project(kW, layer.decay.a.weight, decay_low_);
  kernels.activate(exec, Activation::kTanh, decay_low_, T * layer.decay.rank(), decay_low_);
  rwkv::Expand(exec, layer.decay, decay_low_, T, decay_);
  kernels.activate(exec, Activation::kDecay, decay_, T * C, decay_);
  project(kK, layer.k, k_);
  project(kV, layer.v, v_);
  project(kR, layer.r, r_);
  project(kG, layer.gate, gate_);
  MixHeads(exec, pass, index,
           {.r = r_,
            .k = k_,
            .v = v_,
            .decay = decay_,
            .decay_stride = C,
            .bonus = layer.bonus.data(),
            .gate = gate_,
            .norm = layer.group_norm,
            .output = layer.output,
            .y = y_});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  MNEME_ASSIGN_OR_RETURN(Weights weights, LoadHf(*checkpoint));
  return std::make_unique<Rwkv6>(std::move(checkpoint), std::move(weights));
}

// "rwkv6qwen2", which has another body, is taken too, so that it is refused by its name.
bool Matches(const Checkpoint& checkpoint) {
  return HasModelType(checkpoint, {"rwkv6", "rwkv6qwen2"});
}

}  // namespace mneme::engine::rwkv6
