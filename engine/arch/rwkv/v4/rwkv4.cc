#include "engine/arch/rwkv/v4/rwkv4.h"

#include <array>
#include <utility>

#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/ops.h"

namespace mneme::engine::rwkv4 {
namespace {

// Order of the memory's tensors.
enum MemoryIndex { kNumerator, kDenominator, kExponent };

}  // namespace

Rwkv4::Rwkv4(std::shared_ptr<const Checkpoint> checkpoint, Weights weights)
    : RwkvArch(std::move(checkpoint), std::move(weights.model), "rwkv4",
               {"numerator", "denominator", "exponent"}),
      layers_(std::move(weights.time_mix)),
      exponent_(Place(std::vector<float>(config().width, -1e30f))) {}

void Rwkv4::InitState(Exec& exec, StateSlot state) {
  for (int64_t i = 0; i < config().num_layers; ++i) {
    ops::WriteState(exec, state, exponent_, MemoryField(i, kExponent));
  }
}

std::vector<Arena::Part> Rwkv4::TimeMixRows(int64_t T) {
  std::vector<Arena::Part> parts;
  for (Rows* rows : {&mixed_r_, &mixed_k_, &mixed_v_, &r_, &k_, &v_})
    parts.push_back({rows, T, config().width});
  return parts;
}

void Rwkv4::TimeMix(Exec& exec, const Pass& pass, int64_t index) {
  const rwkv4::TimeMix& layer = layers_[index];
  Blend(exec, pass,
        std::array<ops::Blend, 3>{
            {{layer.mu_r, mixed_r_}, {layer.mu_k, mixed_k_}, {layer.mu_v, mixed_v_}}});
  ops::MatMul(exec, mixed_r_, {layer.r, r_});
  ops::Activate(exec, Activation::kSigmoid, r_, r_);
  ops::MatMul(exec, mixed_k_, {layer.k, k_});
  ops::MatMul(exec, mixed_v_, {layer.v, v_});
  ops::Scan(exec, pass.runs,
            ops::Wkv4{.numerator = MemoryField(index, kNumerator),
                      .denominator = MemoryField(index, kDenominator),
                      .exponent = MemoryField(index, kExponent),
                      .decay = layer.decay,
                      .bonus = layer.bonus,
                      .k = k_,
                      .v = v_,
                      .y = v_});
  ops::Mul(exec, v_, r_);
  ops::MatMul(exec, r_, {.weight = layer.output, .y = pass.x, .accumulate = true});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  MNEME_ASSIGN_OR_RETURN(Weights weights, LoadHf(*checkpoint, *options.memory));
  return std::make_unique<Rwkv4>(std::move(checkpoint), std::move(weights));
}

bool Matches(const Checkpoint& checkpoint) { return HasModelType(checkpoint, {"rwkv"}); }

}  // namespace mneme::engine::rwkv4
