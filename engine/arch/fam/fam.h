// TransformerFAM (Hwang et al. 2024, arXiv:2404.09173): attention over blocks of B tokens and the m
// blocks before, and in every layer f rows of feedback memory. Tokens of a block attend to the
// memory that the block before left; when a block is complete the rows attend to it and pass
// through the layer's own weights to become the next block's memory. f = 0 is the baseline BSWA.
//
// State per layer: "fam" [f, D], its keys and values "fam_k", "fam_v" [f, Hk * dk], and rings "k",
// "v" [(m + 1) B, Hk * dk], keys rotated at their position. B and m come from the checkpoint:
// ArchOptions' window and sinks do not apply. Independent reference: train/fam/reference.py.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/fam/config.h"
#include "engine/arch/fam/weights.h"
#include "engine/device/arena.h"
#include "engine/kernels/ops.h"

namespace mneme::engine::fam {

class Fam final : public Arch {
 public:
  // Memory for activations grows to the largest step and stays.
  static absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                      const ArchOptions& options);

  const ArchInfo& info() const override { return info_; }
  const StateSchema& schema() const override { return schema_; }
  void InitState(Exec& exec, StateSlot state) override;
  void Forward(Exec& exec, const Batch& batch, Rows hidden) override;
  const Matrix& head() const override { return weights_.head; }

 private:
  explicit Fam(Memory& memory) : arena_(memory), memory_arena_(memory) {}

  struct Activations;

  // Sizes the rows of a pass of T, in `arena`.
  Activations Reserve(int64_t T, Arena& arena) const;
  void Rotate(Exec& exec, std::span<const int64_t> positions, std::span<const Rows> rows) const;
  void Mix(Exec& exec, std::span<const Run> pieces, int64_t layer, const Activations& act) const;
  void UpdateMemory(Exec& exec, std::span<const Run> pieces, int64_t layer);
  void StoreMemoryKeys(Exec& exec, std::span<const Run> memories, int64_t layer,
                       const Activations& act, std::span<const int64_t> positions) const;
  // What a token of the text sees; q and out are missing.
  ops::BlockAttention Attention(int64_t layer) const;
  // No tensor for the parts of a memory without rows.
  StateField Field(int64_t layer, int64_t which) const;

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that weights_ points into
  Config config_;
  ArchInfo info_;
  Weights weights_;
  StateSchema schema_;
  Vector ones_;   // [D]
  Vector zeros_;  // [D]
  Arena arena_, memory_arena_;
};

}  // namespace mneme::engine::fam
