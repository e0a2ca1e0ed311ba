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
#include "engine/device/arena.h"

namespace mneme::engine::infini {

class Infini final : public Arch {
 public:
  // Memory for activations grows to the largest step and stays.
  static absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                      const ArchOptions& options);

  const ArchInfo& info() const override { return info_; }
  const StateSchema& schema() const override { return schema_; }
  void Forward(Exec& exec, const Batch& batch, Rows hidden) override;
  const Matrix& head() const override { return weights_.head; }

 private:
  explicit Infini(Memory& memory) : arena_(memory) {}

  struct Activations;
  // Sizes the activations for T tokens.
  Activations Reserve(int64_t T);
  // act.q and act.k -> act.sq, act.sk; then they are rotated.
  void MapFeatures(Exec& exec, const Activations& act) const;
  // Attention of the pieces' tokens inside their segments -> act.local and the rings.
  void AttendLocally(Exec& exec, std::span<const Run> pieces, int64_t layer,
                     const Activations& act) const;
  // Reads the memories, mixes, writes what the segments will add to them -> act.mixed.
  void UseMemory(Exec& exec, std::span<const Run> pieces, int64_t layer,
                 const Activations& act) const;
  StateField Field(int64_t layer, int64_t which) const;

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that weights_ points into
  Config config_;
  ArchInfo info_;
  Weights weights_;
  StateSchema schema_;
  Arena arena_;
  std::vector<int64_t> positions_;  // [T], in the segment
};

}  // namespace mneme::engine::infini
