#include "engine/arch/rwkv/v7/rwkv7.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/ops.h"

namespace mneme::engine::rwkv7 {

Rwkv7::Rwkv7(std::shared_ptr<const Checkpoint> checkpoint, Weights weights)
    : RwkvArch(std::move(checkpoint), std::move(weights.model), "rwkv7"),
      layers_(std::move(weights.time_mix)) {
  for (const rwkv7::TimeMix& layer : layers_) {
    for (const rwkv::LowRank* map : {&layer.w, &layer.a, &layer.v_mix, &layer.gate}) {
      max_rank_ = std::max(max_rank_, map->rank());
    }
  }
}

std::vector<Arena::Part> Rwkv7::TimeMixRows(int64_t T) {
  std::vector<Arena::Part> parts = {{&low_, T, max_rank_}};
  for (Rows& rows : mixed_) parts.push_back({&rows, T, config().width});
  for (Rows* rows : {&r_, &w_, &k_, &v_, &a_, &gate_, &kappa_, &v_mix_, &v_first_, &y_}) {
    parts.push_back({rows, T, config().width});
  }
  return parts;
}

void Rwkv7::TimeMix(Exec& exec, const Pass& pass, int64_t index) {
  const rwkv7::TimeMix& layer = layers_[index];
  const int64_t heads = config().heads;
  enum { kR, kW, kK, kV, kA, kG };
  Blend(exec, pass,
        std::array<ops::Blend, 6>{{{layer.mu_r, mixed_[kR]},
                                   {layer.mu_w, mixed_[kW]},
                                   {layer.mu_k, mixed_[kK]},
                                   {layer.mu_v, mixed_[kV]},
                                   {layer.mu_a, mixed_[kA]},
                                   {layer.mu_g, mixed_[kG]}}});
  // y = what a low-rank map makes of the blend.
  const auto expand = [&](const rwkv::LowRank& map, Rows mixed, std::optional<Activation> f,
                          Rows y) {
    const Rows low = low_.Reshape(pass.x.count(), map.rank());
    ops::MatMul(exec, mixed, {map.a, low});
    if (f.has_value()) ops::Activate(exec, *f, low, low);
    rwkv::Expand(exec, map, low, y);
  };
  ops::MatMul(exec, mixed_[kR], {layer.r, r_});
  expand(layer.w, mixed_[kW], Activation::kTanh, w_);
  ops::MatMul(exec, mixed_[kK], {layer.k, k_});
  ops::MatMul(exec, mixed_[kV], {layer.v, v_});
  if (index == 0) {
    ops::Copy(exec, v_, v_first_);
  } else {
    expand(layer.v_mix, mixed_[kV], std::nullopt, v_mix_);
  }
  expand(layer.a, mixed_[kA], std::nullopt, a_);
  expand(layer.gate, mixed_[kG], Activation::kSigmoid, gate_);

  ops::Prepare(exec, {.heads = heads,
                      .w = w_,
                      .a = a_,
                      .k = k_,
                      .v = v_,
                      .kappa = kappa_,
                      .mix = index == 0 ? Rows() : v_mix_,
                      .first = v_first_,
                      .k_k = layer.k_k,
                      .k_a = layer.k_a});
  ops::Scan(exec, pass.runs,
            ops::Wkv7{.state = MemoryField(index, 0),
                      .heads = heads,
                      .r = r_,
                      .decay = w_,
                      .k = k_,
                      .v = v_,
                      .kappa = kappa_,
                      .b = a_,
                      .y = y_});
  rwkv::Normalize(exec, layer.group_norm, config().group_norm_eps, y_, y_, heads);
  ops::Wkv7Bonus(exec, heads, r_, k_, v_, gate_, layer.r_k, y_);
  ops::MatMul(exec, y_, {.weight = layer.output, .y = pass.x, .accumulate = true});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  MNEME_ASSIGN_OR_RETURN(Weights weights, LoadFla(*checkpoint, *options.memory));
  return std::make_unique<Rwkv7>(std::move(checkpoint), std::move(weights));
}

// "arwkv7", which has another body, is taken too, so that it is refused by its name.
bool Matches(const Checkpoint& checkpoint) { return HasModelType(checkpoint, {"rwkv7", "arwkv7"}); }

}  // namespace mneme::engine::rwkv7
