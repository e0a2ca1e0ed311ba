// Titans (Behrouz et al. 2024, arXiv:2501.00663): a memory that is a small network per head,
// trained on the text while it is read, alone (lmm), behind (mal) or beside (mag) attention over a
// sliding window, or as context of attention inside segments (mac).
//
// State: the memories' weights and momenta, the rows of the chunk that is being read, and a bounded
// number of keys and values; docs/checkpoint_format.md lists the tensors. All sizes come from the
// checkpoint: ArchOptions' window and sinks do not apply. Independent reference:
// train/titans/reference.py.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/step_buffers.h"
#include "engine/arch/titans/attention_layer.h"
#include "engine/arch/titans/config.h"
#include "engine/arch/titans/memory_layer.h"
#include "engine/arch/titans/pass.h"
#include "engine/arch/titans/state.h"
#include "engine/arch/titans/weights.h"

namespace mneme::engine::titans {

class Titans final : public Arch {
 public:
  // Memory for activations grows to the largest step and stays.
  static absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                      const ArchOptions& options);

  const ArchInfo& info() const override { return info_; }
  const StateSchema& schema() const override { return states_.schema(); }
  void InitState(Exec& exec, State& state) override;
  absl::Status Forward(Exec& exec, std::span<const ArchSlice> slices) override;

 private:
  Titans() : memory_(config_, states_), attention_(config_, states_) {}

  struct Activations;
  Activations Reserve(int64_t T);
  // All layers and the head for `slices`, which begin at `positions` (a state's own position is
  // that of the whole step).
  void Run(Exec& exec, std::span<const ArchSlice> slices, std::span<const int64_t> positions);
  // The mixers of a block: act.normed -> act.x.
  void MemoryBlock(const Pass& pass, int64_t layer, const Activations& act);   // lmm, mal
  void GateBlock(const Pass& pass, int64_t layer, const Activations& act);     // mag
  void ContextBlock(const Pass& pass, int64_t layer, const Activations& act);  // mac
  // The gates' logits, z = rates x + bias.
  MatMulTask RatesTask(const MemoryWeights& weights, const Activations& act) const;
  // The whole memory: act.normed -> act.answer.
  void ReadAndWrite(const Pass& pass, int64_t layer, const Activations& act);
  // out (+)= o_proj of attention from act.normed, in mac also over act.h_k and act.h_v.
  void Attend(const Pass& pass, int64_t layer, float* out, bool accumulate, const Activations& act);
  // x += mix.o_proj(gate_mix(act.y, act.m)).
  void Mix(const Pass& pass, const Layer& layer, const Activations& act);

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that weights_ points into
  Config config_;
  ArchInfo info_;
  Weights weights_;
  StateMap states_;
  MemoryLayer memory_;
  AttentionLayer attention_;
  StepBuffers buffers_;
  OutputHead head_;
  std::vector<int32_t> tokens_;
  std::vector<Sequence> sequences_;
};

}  // namespace mneme::engine::titans
