#include "engine/arch/rwkv7/rwkv7.h"

#include <algorithm>
#include <utility>

#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

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

std::vector<StepBuffers::Part> Rwkv7::TimeMixArrays(int64_t T) {
  std::vector<StepBuffers::Part> parts = {{&low_, T * max_rank_}};
  for (float** array : {&r_, &w_, &k_, &v_, &a_, &gate_, &kappa_, &v_mix_, &v_first_, &y_}) {
    parts.push_back({array, T * config().width});
  }
  return parts;
}

void Rwkv7::TimeMix(Exec& exec, const Pass& pass, int64_t index) {
  const Kernels& kernels = exec.kernels();
  const rwkv7::TimeMix& layer = layers_[index];
  const int64_t C = config().width, H = config().heads, N = config().head_size, T = pass.T;

  Blend(exec, pass, layer.mu_r);
  Project(exec, pass, layer.r, r_);
  Blend(exec, pass, layer.mu_w);
  Project(exec, pass, layer.w.a.weight, low_);
  kernels.activate(exec, Activation::kTanh, low_, T * layer.w.rank(), low_);
  rwkv::Expand(exec, layer.w, low_, T, w_);
  Blend(exec, pass, layer.mu_k);
  Project(exec, pass, layer.k, k_);
  Blend(exec, pass, layer.mu_v);
  Project(exec, pass, layer.v, v_);
  if (index == 0) {
    const CopyRowsArgs copy{
        .from = v_, .from_stride = C, .to = v_first_, .to_stride = C, .rows = T, .width = C};
    kernels.copy_rows(exec, {&copy, 1});
  } else {
    Project(exec, pass, layer.v_mix.a.weight, low_);
    rwkv::Expand(exec, layer.v_mix, low_, T, v_mix_);
  }
  Blend(exec, pass, layer.mu_a);
  Project(exec, pass, layer.a.a.weight, low_);
  rwkv::Expand(exec, layer.a, low_, T, a_);
  Blend(exec, pass, layer.mu_g);
  Project(exec, pass, layer.gate.a.weight, low_);
  kernels.activate(exec, Activation::kSigmoid, low_, T * layer.gate.rank(), low_);
  rwkv::Expand(exec, layer.gate, low_, T, gate_);

  kernels.wkv7_prepare(exec, {.w = w_,
                              .a = a_,
                              .k = k_,
                              .v = v_,
                              .kappa = kappa_,
                              .mix = index == 0 ? nullptr : v_mix_,
                              .first = v_first_,
                              .k_k = layer.k_k.data(),
                              .k_a = layer.k_a.data(),
                              .T = T,
                              .heads = H,
                              .head_size = N});
  const size_t offset = MemoryOffset(index, 0);
  scans_.clear();
  ForEachSlice(pass.slices, [&](const ArchSlice& slice, int64_t first) {
    const int64_t at = first * C;
    scans_.push_back({.state = slice.state->block.as<float>(offset),
                      .r = r_ + at,
                      .decay = w_ + at,
                      .k = k_ + at,
                      .v = v_ + at,
                      .kappa = kappa_ + at,
                      .b = a_ + at,
                      .y = y_ + at,
                      .T = static_cast<int64_t>(slice.tokens.size()),
                      .heads = H,
                      .head_size = N});
  });
  kernels.wkv7(exec, scans_);
  rwkv::Normalize(exec, layer.group_norm, config().group_norm_eps, y_, T, C, H, y_);
  kernels.wkv7_bonus(exec, {.r = r_,
                            .k = k_,
                            .v = v_,
                            .gate = gate_,
                            .r_k = layer.r_k.data(),
                            .y = y_,
                            .T = T,
                            .heads = H,
                            .head_size = N});
  rwkv::Multiply(exec, layer.output, y_, C, T, pass.x, {.accumulate = true});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  MNEME_ASSIGN_OR_RETURN(Weights weights, LoadFla(*checkpoint));
  return std::make_unique<Rwkv7>(std::move(checkpoint), std::move(weights));
}

// "arwkv7", which has another body, is taken too, so that it is refused by its name.
bool Matches(const Checkpoint& checkpoint) { return HasModelType(checkpoint, {"rwkv7", "arwkv7"}); }

}  // namespace mneme::engine::rwkv7
