// The Llama family (Touvron et al. 2023, arXiv:2302.13971): RMSNorm, rotary positions, grouped
// query heads, SwiGLU, with attention sinks and a sliding window (Xiao et al. 2023,
// arXiv:2309.17453), so that the state has a fixed size.
//
// PanGu-pi is this block with options (pangu_options.h).
//
// State: per layer "k" and "v", rings [S + R, Hk * Dh], keys stored rotated at their absolute
// position; with Overflow::kError the same rows of every token, in pages, up to the context limit.
// Independent reference: train/llama/reference.py.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/llama/config.h"
#include "engine/arch/llama/weights.h"
#include "engine/device/arena.h"

namespace mneme::engine::llama {

class Llama final : public Arch {
 public:
  // Memory for activations grows to the largest step and stays: about 4 * (4 D + 3 H Dh + 2 F)
  // bytes a token.
  static absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                      const ArchOptions& options);

  const ArchInfo& info() const override { return info_; }
  const StateSchema& schema() const override { return schema_; }
  void Forward(Exec& exec, const Batch& batch, Rows hidden) override;
  const Matrix& head() const override { return weights_.head; }

 private:
  explicit Llama(Memory& memory) : arena_(memory) {}

  struct Activations;
  // Sizes the activations for T tokens.
  Activations Reserve(int64_t T);
  void Attend(Exec& exec, const Batch& batch, int64_t layer, const Activations& act);
  void ReadShortcuts(Exec& exec, const Layer& layer, const Activations& act);
  void AddShortcuts(Exec& exec, const Layer& layer, const Activations& act);
  void SeriesFeedForward(Exec& exec, const Layer& layer, const Activations& act);

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that weights_ points into
  Config config_;
  ArchInfo info_;
  Weights weights_;
  StateSchema schema_;
  int64_t sinks_ = 0;   // S
  int64_t window_ = 0;  // R
  Arena arena_;
  std::vector<int64_t> sink_positions_;  // [T], what q_sink is rotated at
};

}  // namespace mneme::engine::llama
