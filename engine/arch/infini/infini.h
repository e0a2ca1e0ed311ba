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
#include "engine/arch/infini/memory_kernels.h"
#include "engine/arch/infini/weights.h"
#include "engine/arch/step_buffers.h"
#include "engine/core/aligned_buffer.h"

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
  void Mix(Exec& exec, const MemoryKernels& kernels, std::span<const ArchSlice> slices,
           int64_t layer, const Activations& act);
  void MixHead(const MemoryKernels& kernels, const ArchSlice& slice, int64_t first, int64_t layer,
               int64_t kv_head, const Activations& act, AlignedBuffer& scratch);

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that weights_ points into
  Config config_;
  ArchInfo info_;
  Weights weights_;
  StateSchema schema_;
  DType kv_dtype_ = DType::kF16;
  StepBuffers buffers_;
  OutputHead head_;
  std::vector<AlignedBuffer> scratch_;  // one per worker
  std::vector<int32_t> tokens_;
  std::vector<int64_t> rows_;  // [T], position in the segment
};

}  // namespace mneme::engine::infini
