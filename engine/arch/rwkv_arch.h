// What all versions of RWKV have around their time mixing: embedding and its norm, residual blocks,
// token shift, channel mixing, the head, and the layout of the state.
//
// State, f32, per layer: "att_shift" and "ffn_shift" [C], the normalised inputs of the last token,
// then the version's memory. Its size does not depend on the text, and no number of tokens exhausts
// it. Independent reference of all versions: train/rwkv/reference.py.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/arch/arch.h"
#include "engine/arch/rwkv_weights.h"
#include "engine/arch/step_buffers.h"

namespace mneme::engine::rwkv {

class RwkvArch : public Arch {
 public:
  const ArchInfo& info() const final { return model_.info; }
  const StateSchema& schema() const final { return schema_; }
  absl::Status Forward(Exec& exec, std::span<const ArchSlice> slices) final;

 protected:
  // Versions with a matrix per head: "wkv" [H, N, N] as [head][value][key].
  RwkvArch(std::shared_ptr<const Checkpoint> checkpoint, Model model, std::string name);
  // Others: vectors [C] of these names.
  RwkvArch(std::shared_ptr<const Checkpoint> checkpoint, Model model, std::string name,
           std::initializer_list<const char*> memory);

  // One pass over T tokens. Arrays are row-major.
  struct Pass {
    std::span<const ArchSlice> slices;
    int64_t T = 0;
    float* x = nullptr;      // [T, C] residual stream
    float* z = nullptr;      // [T, C] normalised
    float* delta = nullptr;  // [T, C] the row of z before minus this one
    float* mixed = nullptr;  // [T, C] a blend of the two
    float* ffn = nullptr;    // [T, F]
  };
  // The arrays that TimeMix wants for T tokens.
  virtual std::vector<StepBuffers::Part> TimeMixArrays(int64_t T) = 0;
  // x += what the layer's time mixing makes of z and delta.
  virtual void TimeMix(Exec& exec, const Pass& pass, int64_t layer) = 0;

  const Config& config() const { return model_.config; }
  // Of tensor `index` of the memory of `layer`, in bytes, in every state.
  size_t MemoryOffset(int64_t layer, int64_t index) const;

  // pass.mixed = z + delta * (mu + dynamic); dynamic [T, C] may be null.
  void Blend(Exec& exec, const Pass& pass, const std::vector<float>& mu,
             const float* dynamic = nullptr) const;
  // y = weight pass.mixed
  void Project(Exec& exec, const Pass& pass, const Weight& weight, float* y) const;
  // What versions 5 and 6 share: the scan of version 6's memory, its norm per head, and
  // x += output (norm(y) * silu(gate)). Arrays [T, C].
  struct HeadMix {
    const float *r, *k, *v;
    const float* decay;  // row stride decay_stride
    int64_t decay_stride;
    const float* bonus;  // [C]
    const float* gate;   // may be null: no gate
    const Norm& norm;
    const Weight& output;
    float* y;  // scratch
  };
  void MixHeads(Exec& exec, const Pass& pass, int64_t layer, const HeadMix& mix);

 private:
  // `memory`: what a layer has besides the shifts, with layer 0.
  void Describe(std::string name, std::string state_formula,
                const std::vector<StateTensor>& memory);
  void Shift(Exec& exec, const Pass& pass, size_t tensor);
  void ChannelMix(Exec& exec, const Pass& pass, const Block& block);

  std::shared_ptr<const Checkpoint> checkpoint_;  // owns the mapping that weights point into
  Model model_;
  int64_t tensors_per_layer_ = 0;
  StateSchema schema_;
  StepBuffers buffers_;
  OutputHead head_;
  std::vector<int32_t> tokens_;
  std::vector<TokenShiftArgs> shifts_;  // one per slice
  std::vector<Wkv6Args> scans_;         // one per slice
};

// y = norm(x), x [T, D] in `groups` parts a row; y may be x.
void Normalize(Exec& exec, const Norm& norm, float eps, const float* x, int64_t T, int64_t D,
               int64_t groups, float* y);
// What a product is added to and multiplied by (kernels/matmul.h).
struct ProductOptions {
  bool accumulate = false;
  const float* bias = nullptr;
  float scale = 1;
};
// y = weight x, rows of x `stride` elements apart.
void Multiply(Exec& exec, const Weight& weight, const float* x, int64_t stride, int64_t T, float* y,
              const ProductOptions& options = {});
// y = b x + bias, x [T, R] being what the first factor and its function left.
void Expand(Exec& exec, const LowRank& map, const float* x, int64_t T, float* y);

}  // namespace mneme::engine::rwkv
