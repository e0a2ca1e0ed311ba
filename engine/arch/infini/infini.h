// Infini-attention (Munkhdalai et al. 2024, arXiv:2404.07143): attention inside fixed segments of N
// tokens, and per head a compressive memory of all complete segments before, mixed by a learned
// gate. Updates linear and linear+delta.
//
// State per layer: "memory" [Hk, dk, dv] and "normalizer" [Hk, dk] of the complete segments, their
// "pending_" sums of the current one, and rings "k" [N, Hk * dk] (rotated by the position in the
// segment) and "v" [N, Hk * dv]. N comes from the checkpoint: ArchOptions' window and sinks do not
// apply. Independent reference: train/infini/reference.py.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/infini/config.h"
#include "engine/arch/infini/weights.h"
#include "engine/arch/rounds.h"
#include "engine/arch/step_buffers.h"
#include "engine/kernels/block_attention.h"
#include "engine/kernels/infini_memory.h"
#include "engine/kernels/rows.h"

namespace mneme::engine::infini {

class Infini final : public Arch {
 public:
  // Memory for activations grows to the largest step and stays.
  static absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                      const ArchOptions& options);

  const ArchInfo& info() const override { return info_; }
  const StateSchema& schema() const override { return schema_; }
  absl::Status Forward(Exec& exec, std::span<const ArchSlice> slices) override;

 private:
  Infini() = default;

  struct Activations;
  // Sizes the activations for T tokens.
  Activations Reserve(int64_t T);
  // act.q, act.k, act.v and the states -> act.mixed and the states of the layer.
  void Mix(Exec& exec, int64_t layer, const Activations& act);
  // Attention of the pieces' tokens inside their segments -> act.local and the rings.
  void AttendLocally(Exec& exec, std::span<const Piece> pieces, int64_t layer,
                     const Activations& act);
  // Reads the memories, mixes, writes what the segments will add to them -> act.mixed.
  void UseMemory(Exec& exec, std::span<const Piece> pieces, int64_t layer, const Activations& act);
  const StateTensor& Tensor(int64_t layer, int64_t which) const;

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that weights_ points into
  Config config_;
  ArchInfo info_;
  Weights weights_;
  StateSchema schema_;
  DType kv_dtype_ = DType::kF16;
  StepBuffers buffers_;
  OutputHead head_;
  std::vector<int32_t> tokens_;
  std::vector<int64_t> rows_;  // [T], position in the segment
  std::vector<std::vector<Piece>> rounds_;
  std::vector<BlockAttentionArgs> attention_;
  std::vector<StoreRowsArgs> stores_;
  std::vector<InfiniMixArgs> mixes_;
};

}  // namespace mneme::engine::infini
