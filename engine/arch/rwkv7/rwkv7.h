// RWKV-7 "Goose" (Peng et al. 2025, arXiv:2503.14456): a recurrent network whose memory is a
// matrix per head, corrected by the delta rule with data-dependent decay and learning rate.
//
// State, f32, per layer: "att_shift" and "ffn_shift" [C], the normalised inputs of the last token,
// and "wkv" [H, N, N] as [head][value][key]. Its size does not depend on the text, and no number of
// tokens exhausts it. Independent reference: train/rwkv/reference.py.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/rwkv7/weights.h"
#include "engine/arch/step_buffers.h"

namespace mneme::engine::rwkv7 {

class Rwkv7 final : public Arch {
 public:
  static absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                      const ArchOptions& options);

  const ArchInfo& info() const override { return info_; }
  const StateSchema& schema() const override { return schema_; }
  absl::Status Forward(Exec& exec, std::span<const ArchSlice> slices) override;

 private:
  Rwkv7() = default;

  struct Activations;
  Activations Reserve(int64_t T);
  // act.delta = previous token's row of act.z minus this one's; the states take the last rows.
  void Shift(Exec& exec, std::span<const ArchSlice> slices, size_t tensor, const Activations& act);
  void TimeMix(Exec& exec, std::span<const ArchSlice> slices, int64_t layer,
               const Activations& act);
  void ChannelMix(Exec& exec, std::span<const ArchSlice> slices, int64_t layer,
                  const Activations& act);

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that weights_ points into
  Config config_;
  ArchInfo info_;
  Weights weights_;
  StateSchema schema_;
  StepBuffers buffers_;
  OutputHead head_;
  std::vector<int32_t> tokens_;
  std::vector<TokenShiftArgs> shifts_;  // one per slice
  std::vector<Wkv7Args> scans_;         // one per slice
};

}  // namespace mneme::engine::rwkv7
