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
#include "engine/arch/titans/attention_layer.h"
#include "engine/arch/titans/config.h"
#include "engine/arch/titans/memory_layer.h"
#include "engine/arch/titans/state.h"
#include "engine/arch/titans/weights.h"
#include "engine/device/arena.h"

namespace mneme::engine::titans {

class Titans final : public Arch {
 public:
  // Memory for activations grows to the largest step and stays.
  static absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                      const ArchOptions& options);

  const ArchInfo& info() const override { return info_; }
  const StateSchema& schema() const override { return states_.schema(); }
  void InitState(Exec& exec, StateSlot state) override;
  void Forward(Exec& exec, const Batch& batch, Rows hidden) override;
  const Matrix& head() const override { return weights_.head; }

 private:
  explicit Titans(Memory& memory)
      : memory_(config_, states_),
        attention_(config_, states_),
        arena_(memory),
        segment_arena_(memory) {}

  struct Activations;
  Activations Reserve(int64_t T, Arena& arena) const;
  // The residual stream behind all layers -> act.x.
  void RunLayers(Exec& exec, const Batch& batch, const Activations& act);
  // The mixers of a block: act.normed -> act.x.
  void MemoryBlock(Exec& exec, const Batch& batch, int64_t layer, const Activations& act);
  void GateBlock(Exec& exec, const Batch& batch, int64_t layer, const Activations& act);
  void ContextBlock(Exec& exec, const Batch& batch, int64_t layer, const Activations& act);
  // The whole memory: act.normed -> act.answer. `q` and `q_conv` with its tensor of the state: of
  // the first or the second reading.
  void ReadAndWrite(Exec& exec, const Batch& batch, int64_t layer, const Matrix& q,
                    const Vector& q_conv, int q_tensor, const Activations& act);
  // out (+)= o_proj of attention from act.normed, in mac also over act.h_k and act.h_v.
  void Attend(Exec& exec, const Batch& batch, int64_t layer, Rows out, bool accumulate,
              const Activations& act);
  // x += mix.o_proj(gate_mix(act.y, act.m)).
  void Mix(Exec& exec, const Layer& layer, const Activations& act);

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that weights_ points into
  Config config_;
  ArchInfo info_;
  Weights weights_;
  StateMap states_;
  MemoryLayer memory_;
  AttentionLayer attention_;
  Arena arena_, segment_arena_;
};

}  // namespace mneme::engine::titans
