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
#include "engine/arch/rounds.h"
#include "engine/arch/step_buffers.h"
#include "engine/core/aligned_buffer.h"

namespace mneme::engine::fam {

class Fam final : public Arch {
 public:
  // Memory for activations grows to the largest step and stays.
  static absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                      const ArchOptions& options);

  const ArchInfo& info() const override { return info_; }
  const StateSchema& schema() const override { return schema_; }
  void InitState(Exec& exec, State& state) override;
  absl::Status Forward(Exec& exec, std::span<const ArchSlice> slices) override;

 private:
  Fam() = default;

  struct Activations;

  // Sizes the arrays for T rows, in `buffers`.
  Activations Reserve(int64_t T, StepBuffers& buffers) const;
  void Rotate(Exec& exec, std::span<const int64_t> positions, int64_t heads, float* x) const;
  void Mix(Exec& exec, std::span<const Piece> pieces, int64_t layer, const Activations& act);
  void UpdateMemory(Exec& exec, std::span<const Piece> pieces, int64_t layer);
  void StoreMemoryKeys(Exec& exec, const DecoderLayer& layer, const Activations& act,
                       std::span<const int64_t> positions, std::span<std::byte* const> k_rows,
                       std::span<std::byte* const> v_rows);
  void AddStores(int64_t rows, const float* k, const float* v, std::byte* to_k, std::byte* to_v);
  // Attention arguments of head shapes and options alone.
  BlockAttentionArgs BaseArgs() const;
  const StateTensor& Tensor(int64_t layer, int64_t which) const;

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that weights_ points into
  Config config_;
  ArchInfo info_;
  Weights weights_;
  StateSchema schema_;
  DType kv_dtype_ = DType::kF16;
  std::vector<float> ones_;   // [D]
  std::vector<float> zeros_;  // [D]

  StepBuffers buffers_;
  StepBuffers memory_buffers_;
  OutputHead head_;
  std::vector<int32_t> tokens_;
  std::vector<int64_t> positions_;  // [T], absolute
  std::vector<std::vector<Piece>> rounds_;
  std::vector<BlockAttentionArgs> attention_;
  std::vector<StoreRowsArgs> stores_;
};

}  // namespace mneme::engine::fam
