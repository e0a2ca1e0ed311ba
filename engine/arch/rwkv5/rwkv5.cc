#include "engine/arch/rwkv5/rwkv5.h"

#include <utility>

#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv5 {

Rwkv5::Rwkv5(std::shared_ptr<const Checkpoint> checkpoint, Weights weights)
    : RwkvArch(std::move(checkpoint), std::move(weights.model), "rwkv5"),
      layers_(std::move(weights.time_mix)) {}

std::vector<StepBuffers::Part> Rwkv5::TimeMixArrays(int64_t T) {
  std::vector<StepBuffers::Part> parts;
  for (float** array : {&r_, &k_, &v_, &gate_, &y_}) parts.push_back({array, T * config().width});
  return parts;
}

void Rwkv5::TimeMix(Exec& exec, const Pass& pass, int64_t index) {
  const rwkv5::TimeMix& layer = layers_[index];
  const bool has_gate = layer.gate.rows != 0;
  Blend(exec, pass, layer.mu_r);
  Project(exec, pass, layer.r, r_);
  Blend(exec, pass, layer.mu_k);
  Project(exec, pass, layer.k, k_);
  Blend(exec, pass, layer.mu_v);
  Project(exec, pass, layer.v, v_);
  if (has_gate) {
    Blend(exec, pass, layer.mu_g);
    Project(exec, pass, layer.gate, gate_);
  }
  MixHeads(exec, pass, index,
           {.r = r_,
            .k = k_,
            .v = v_,
            .decay = layer.decay.data(),
            .decay_stride = 0,
            .bonus = layer.bonus.data(),
            .gate = has_gate ? gate_ : nullptr,
            .norm = layer.group_norm,
            .output = layer.output,
            .y = y_});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  MNEME_ASSIGN_OR_RETURN(Weights weights, LoadHf(*checkpoint));
  return std::make_unique<Rwkv5>(std::move(checkpoint), std::move(weights));
}

bool Matches(const Checkpoint& checkpoint) { return HasModelType(checkpoint, {"rwkv5"}); }

}  // namespace mneme::engine::rwkv5
