#include "bench/model_run.h"

#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/device/raw.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/ops.h"

namespace mneme::bench {

using engine::Exec;
using engine::Rows;

absl::StatusOr<std::unique_ptr<ModelRun>> ModelRun::Create(
    std::shared_ptr<const engine::Checkpoint> checkpoint, engine::Device& device) {
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<engine::Arch> arch,
                         engine::CreateArch(std::move(checkpoint), {.memory = &device.memory()}));
  return std::unique_ptr<ModelRun>(new ModelRun(device, std::move(arch)));
}

engine::Contract ModelRun::contract() const {
  return arch_->info().has_quantized_weights ? engine::Contract::kInt8 : engine::Contract::kF32;
}

absl::Status ModelRun::Begin(int64_t sequences, int64_t position) {
  position_ = position;
  if (static_cast<int64_t>(states_.size()) == sequences) return absl::OkStatus();
  engine::Memory& memory = device_.memory();
  const size_t size_bytes = arch_->schema().size_bytes();
  try {
    states_.clear();
    for (int64_t i = 0; i < sequences; ++i) states_.push_back(memory.Allocate(size_bytes));
    Exec exec(device_, contract());
    arch_->InitState(exec, engine::SlotAt(states_[0].address()));
    for (int64_t i = 1; i < sequences; ++i) memory.Copy(states_[0], 0, size_bytes, states_[i]);
  } catch (const std::bad_alloc&) {
    states_.clear();
    return absl::ResourceExhaustedError(
        absl::StrCat(sequences, " states of ", size_bytes, " bytes do not fit"));
  }
  return device_.Wait();
}

absl::Status ModelRun::Pass(engine::Device& by, int64_t tokens, bool wanted) {
  Exec exec(by, contract());
  const engine::Matrix& head = arch_->head();
  const auto count = static_cast<int64_t>(states_.size());
  tokens_.resize(tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    tokens_[t] = static_cast<int32_t>((position_ + t) * 7919 % arch_->info().vocab_size);
  }
  batch_.Clear();
  for (const engine::Block& state : states_) {
    batch_.Add(engine::SlotAt(state.address()), position_, tokens_, wanted ? 1 : 0);
  }
  position_ += tokens;
  const auto rows = [&](engine::Block& block, int64_t width) {
    const size_t size_bytes = count * width * sizeof(float);
    if (block.size() < size_bytes) block = device_.memory().Allocate(size_bytes);
    return engine::RowsAt(reinterpret_cast<float*>(block.address()), count, width);
  };
  try {
    const Rows hidden = rows(hidden_, head.columns());
    arch_->Forward(exec, batch_, wanted ? hidden : hidden.Slice(0, 0));
    if (!wanted) return absl::OkStatus();
    const Rows logits = rows(logits_, head.rows());
    engine::ops::MatMul(exec, hidden, {.weight = head, .y = logits});
    finite_.resize(count);
    engine::ops::FiniteRows(exec, logits, finite_);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a pass of ", count * tokens, " tokens does not fit"));
  }
  return absl::OkStatus();
}

int64_t ModelRun::CopyState() {
  const size_t size_bytes = arch_->schema().size_bytes();
  device_.memory().Copy(states_[0], 0, size_bytes, states_[1]);
  device_.memory().Copy(states_[1], 0, size_bytes, states_[0]);
  return static_cast<int64_t>(2 * size_bytes);
}

}  // namespace mneme::bench
