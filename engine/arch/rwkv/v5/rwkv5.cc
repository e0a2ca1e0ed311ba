#include "engine/arch/rwkv/v5/rwkv5.h"

#include <array>
#include <span>
#include <utility>

#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/ops.h"

namespace mneme::engine::rwkv5 {

Rwkv5::Rwkv5(std::shared_ptr<const Checkpoint> checkpoint, Weights weights)
    : RwkvArch(std::move(checkpoint), std::move(weights.model), "rwkv5"),
      layers_(std::move(weights.time_mix)) {}

std::vector<Arena::Part> Rwkv5::TimeMixRows(int64_t T) {
  std::vector<Arena::Part> parts;
  for (Rows* rows : {&mixed_r_, &mixed_k_, &mixed_v_, &mixed_gate_, &r_, &k_, &v_, &gate_, &y_}) {
    parts.push_back({rows, T, config().width});
  }
  return parts;
}

void Rwkv5::TimeMix(Exec& exec, const Pass& pass, int64_t index) {
  const rwkv5::TimeMix& layer = layers_[index];
  const std::array<ops::Blend, 4> blends = {{{layer.mu_r, mixed_r_},
                                             {layer.mu_k, mixed_k_},
                                             {layer.mu_v, mixed_v_},
                                             {layer.mu_g, mixed_gate_}}};
  Blend(exec, pass, std::span(blends).first(layer.gate ? 4 : 3));
  ops::MatMul(exec, mixed_r_, {layer.r, r_});
  ops::MatMul(exec, mixed_k_, {layer.k, k_});
  ops::MatMul(exec, mixed_v_, {layer.v, v_});
  if (layer.gate) ops::MatMul(exec, mixed_gate_, {layer.gate, gate_});
  MixHeads(exec, pass, index,
           {.r = r_,
            .k = k_,
            .v = v_,
            .fixed_decay = layer.decay,
            .bonus = layer.bonus,
            .gate = layer.gate ? gate_ : Rows(),
            .norm = layer.group_norm,
            .output = layer.output,
            .y = y_});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  MNEME_ASSIGN_OR_RETURN(Weights weights, LoadHf(*checkpoint, *options.memory));
  return std::make_unique<Rwkv5>(std::move(checkpoint), std::move(weights));
}

bool Matches(const Checkpoint& checkpoint) { return HasModelType(checkpoint, {"rwkv5"}); }

}  // namespace mneme::engine::rwkv5
