// What all versions of RWKV have around their time mixing: embedding and its norm, residual blocks,
// token shift, channel mixing, the head, and the layout of the state.
//
// State, f32, per layer: "att_shift" and "ffn_shift" [C], the normalised inputs of the last token,
// then the version's memory. Its size does not depend on the text, and no number of tokens exhausts
// it. Independent reference of all versions: train/rwkv/reference.py.
#pragma once

#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/arch/arch.h"
#include "engine/arch/rwkv/rwkv_weights.h"
#include "engine/device/arena.h"
#include "engine/kernels/ops.h"

namespace mneme::engine::rwkv {

class RwkvArch : public Arch {
 public:
  const ArchInfo& info() const final { return model_.info; }
  const StateSchema& schema() const final { return schema_; }
  void Forward(Exec& exec, const Batch& batch, Rows hidden) final;
  const Matrix& head() const final { return model_.head; }

 protected:
  // Versions with a matrix per head: "wkv" [H, N, N] as [head][value][key].
  RwkvArch(std::shared_ptr<const Checkpoint> checkpoint, Model model, std::string name);
  // Others: vectors [C] of these names.
  RwkvArch(std::shared_ptr<const Checkpoint> checkpoint, Model model, std::string name,
           std::initializer_list<const char*> vectors);

  // One pass over T tokens.
  struct Pass {
    std::span<const Run> runs;
    Rows x;      // [T, C] residual stream
    Rows z;      // [T, C] normalised
    Rows delta;  // [T, C] the row of z before minus this one
    Rows mixed;  // [T, C] a blend of the two
    Rows ffn;    // [T, F]
  };
  // The rows that TimeMix wants for T tokens.
  virtual std::vector<Arena::Part> TimeMixRows(int64_t T) = 0;
  // x += what the layer's time mixing makes of z and delta.
  virtual void TimeMix(Exec& exec, const Pass& pass, int64_t layer) = 0;

  const Config& config() const { return model_.config; }
  // Tensor `index` of the memory of `layer`.
  StateField MemoryField(int64_t layer, int64_t index) const;
  Vector Place(std::span<const float> values) { return model_.store.Place(values); }

  // pass.mixed = z + delta * (mu + dynamic); dynamic [T, C] may be empty.
  void Blend(Exec& exec, const Pass& pass, Vector mu, Rows dynamic = {}) const;
  // Several at once, of z and delta, to where they say.
  void Blend(Exec& exec, const Pass& pass, std::span<const ops::Blend> blends) const;
  // What versions 5 and 6 share: the scan of version 6's memory, its norm per head, and
  // x += output (norm(y) * silu(gate)). Rows [T, C].
  struct HeadMix {
    Rows r, k, v;
    Rows decay = {};          // or
    Vector fixed_decay = {};  // [C]
    Vector bonus;             // [C]
    Rows gate;                // empty: no gate
    const Norm& norm;
    const Matrix& output;
    Rows y;  // scratch
  };
  void MixHeads(Exec& exec, const Pass& pass, int64_t layer, const HeadMix& mix);

 private:
  // `memory`: what a layer has besides the shifts, with layer 0.
  void Describe(std::string name, std::string state_formula,
                const std::vector<StateTensor>& memory);
  void ChannelMix(Exec& exec, const Pass& pass, const Block& block);

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that matrices lie in
  Model model_;
  int64_t tensors_per_layer_ = 0;
  StateSchema schema_;
  Arena arena_;
};

// y = norm(x), [T, C], each of the `groups` parts of a row on its own; y may be x.
void Normalize(Exec& exec, const Norm& norm, float eps, Rows x, Rows y, int64_t groups = 1);
// y = b x + bias, x [T, R] being what the first factor and its function left.
void Expand(Exec& exec, const LowRank& map, Rows x, Rows y);

}  // namespace mneme::engine::rwkv
