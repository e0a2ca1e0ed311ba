#include "engine/arch/rwkv4/rwkv4.h"

#include <utility>

#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::rwkv4 {
namespace {

// Order of the memory's tensors.
enum MemoryIndex { kNumerator, kDenominator, kExponent };

}  // namespace

Rwkv4::Rwkv4(std::shared_ptr<const Checkpoint> checkpoint, Weights weights)
    : RwkvArch(std::move(checkpoint), std::move(weights.model), "rwkv4",
               {"numerator", "denominator", "exponent"}),
      layers_(std::move(weights.time_mix)) {}

void Rwkv4::InitState(Exec& exec, State& state) {
  const std::vector<float> exponent(config().width, -1e30f);
  std::vector<CopyRowsArgs> copies;
  for (int64_t i = 0; i < config().num_layers; ++i) {
    copies.push_back({.from = exponent.data(),
                      .to = state.block.as<float>(MemoryOffset(i, kExponent)),
                      .rows = 1,
                      .width = config().width});
  }
  exec.kernels().copy_rows(exec, copies);
}

std::vector<StepBuffers::Part> Rwkv4::TimeMixArrays(int64_t T) {
  std::vector<StepBuffers::Part> parts;
  for (float** array : {&r_, &k_, &v_}) parts.push_back({array, T * config().width});
  return parts;
}

void Rwkv4::TimeMix(Exec& exec, const Pass& pass, int64_t index) {
  const Kernels& kernels = exec.kernels();
  const rwkv4::TimeMix& layer = layers_[index];
  const int64_t C = config().width, T = pass.T;
  Blend(exec, pass, layer.mu_r);
  Project(exec, pass, layer.r, r_);
  kernels.activate(exec, Activation::kSigmoid, r_, T * C, r_);
  Blend(exec, pass, layer.mu_k);
  Project(exec, pass, layer.k, k_);
  Blend(exec, pass, layer.mu_v);
  Project(exec, pass, layer.v, v_);
  const size_t numerator = MemoryOffset(index, kNumerator);
  const size_t denominator = MemoryOffset(index, kDenominator);
  const size_t exponent = MemoryOffset(index, kExponent);
  scans_.clear();
  ForEachSlice(pass.slices, [&](const ArchSlice& slice, int64_t first) {
    AlignedBuffer& block = slice.state->block;
    scans_.push_back({.numerator = block.as<float>(numerator),
                      .denominator = block.as<float>(denominator),
                      .exponent = block.as<float>(exponent),
                      .decay = layer.decay.data(),
                      .bonus = layer.bonus.data(),
                      .k = k_ + first * C,
                      .v = v_ + first * C,
                      .y = v_ + first * C,
                      .T = static_cast<int64_t>(slice.tokens.size()),
                      .C = C});
  });
  kernels.wkv4(exec, scans_);
  kernels.mul(exec, v_, T * C, r_);
  rwkv::Multiply(exec, layer.output, r_, C, T, pass.x, {.accumulate = true});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  MNEME_ASSIGN_OR_RETURN(Weights weights, LoadHf(*checkpoint));
  return std::make_unique<Rwkv4>(std::move(checkpoint), std::move(weights));
}

bool Matches(const Checkpoint& checkpoint) { return HasModelType(checkpoint, {"rwkv"}); }

}  // namespace mneme::engine::rwkv4
