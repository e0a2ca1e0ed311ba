#include "engine/arch/rwkv/v6/rwkv6.h"

#include <algorithm>
#include <utility>

#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/ops.h"

namespace mneme::engine::rwkv6 {

Rwkv6::Rwkv6(std::shared_ptr<const Checkpoint> checkpoint, Weights weights)
    : RwkvArch(std::move(checkpoint), std::move(weights.model), "rwkv6"),
      layers_(std::move(weights.time_mix)) {
  for (const rwkv6::TimeMix& layer : layers_) {
    max_mix_rows_ = std::max(max_mix_rows_, layer.mix_a.rows());
    max_decay_rank_ = std::max(max_decay_rank_, layer.decay.rank());
  }
}

std::vector<Arena::Part> Rwkv6::TimeMixRows(int64_t T) {
  std::vector<Arena::Part> parts = {{&mix_low_, T, max_mix_rows_},
                                    {&decay_low_, T, max_decay_rank_}};
  for (Rows* rows : {&r_, &k_, &v_, &gate_, &decay_, &share_, &y_}) {
    parts.push_back({rows, T, config().width});
  }
  return parts;
}

void Rwkv6::TimeMix(Exec& exec, const Pass& pass, int64_t index) {
  const rwkv6::TimeMix& layer = layers_[index];
  const int64_t T = pass.x.count();
  const Rows mixes = mix_low_.Reshape(T, layer.mix_a.rows());
  const Rows decay_low = decay_low_.Reshape(T, layer.decay.rank());

  Blend(exec, pass, layer.mu_x);
  ops::MatMul(exec, pass.mixed, {layer.mix_a, mixes});
  ops::Activate(exec, Activation::kTanh, mixes, mixes);
  // y = weight times mix i of the two tokens.
  const auto project = [&](MixIndex i, const Matrix& weight, Rows y) {
    const int64_t rank = layer.mix_b[i].columns();
    ops::MatMul(exec, mixes.Columns(i * rank, rank), {layer.mix_b[i], share_});
    Blend(exec, pass, layer.mu[i], share_);
    ops::MatMul(exec, pass.mixed, {weight, y});
  };
  project(kW, layer.decay.a, decay_low);
  ops::Activate(exec, Activation::kTanh, decay_low, decay_low);
  rwkv::Expand(exec, layer.decay, decay_low, decay_);
  ops::Activate(exec, Activation::kDecay, decay_, decay_);
  project(kK, layer.k, k_);
  project(kV, layer.v, v_);
  project(kR, layer.r, r_);
  project(kG, layer.gate, gate_);
  MixHeads(exec, pass, index,
           {.r = r_,
            .k = k_,
            .v = v_,
            .decay = decay_,
            .bonus = layer.bonus,
            .gate = gate_,
            .norm = layer.group_norm,
            .output = layer.output,
            .y = y_});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  MNEME_ASSIGN_OR_RETURN(Weights weights, LoadHf(*checkpoint, *options.memory));
  return std::make_unique<Rwkv6>(std::move(checkpoint), std::move(weights));
}

// "rwkv6qwen2", which has another body, is taken too, so that it is refused by its name.
bool Matches(const Checkpoint& checkpoint) {
  return HasModelType(checkpoint, {"rwkv6", "rwkv6qwen2"});
}

}  // namespace mneme::engine::rwkv6
