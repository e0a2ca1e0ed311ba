// The neural memory of a layer (arXiv:2501.00663, sections 3.1 and 4.4): short convolutions, the
// rates of its updates, reading and writing, and the way out. What the kernels compute is in
// engine/kernels/{short_conv,titans_memory}.h; here are a layer's weights and a sequence's state.
#pragma once

#include <vector>

#include "engine/arch/titans/config.h"
#include "engine/arch/titans/pass.h"
#include "engine/arch/titans/state.h"
#include "engine/arch/titans/weights.h"

namespace mneme::engine::titans {

// Rows [T, dm] of one pass. Without keys the memory is only read.
struct MemoryRows {
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  const float* rates = nullptr;  // [T, 3 H] as MemoryLayer::Rates leaves them
  float* y = nullptr;            // out: M(q)
};

// One of a layer's short convolutions.
struct Convolution {
  int tensor = -1;                   // of the state: the rows before the pass; -1 with one tap
  const float* taps = nullptr;       // [K, dm]
  bool normalize = false;            // per head
  const float* projected = nullptr;  // [T, dm]
  float* out = nullptr;              // [T, dm], distinct
};

class MemoryLayer {
 public:
  // Both must outlive this.
  MemoryLayer(const Config& config, const StateMap& states) : config_(config), states_(states) {}

  void Convolve(const Pass& pass, int64_t layer, std::span<const Convolution> convolutions);
  // In: z = gate x + bias, [T, 3 H]. Out: theta, eta, alpha.
  void Rates(const Pass& pass, float* z) const;
  // Reads y for every row, and writes the rows. Each token reads what the mode lets it see.
  void Apply(const Pass& pass, int64_t layer, const MemoryWeights& weights, const MemoryRows& rows);
  // out (+)= o_proj(rms(y) * silu(output_gate x)); y [T, dm] is overwritten, gate [T, dm] scratch.
  void Output(const Pass& pass, const MemoryOutput& weights, const float* x, float* y, float* gate,
              float* out, bool accumulate) const;

 private:
  const Config& config_;
  const StateMap& states_;
  std::vector<ShortConvArgs> convolutions_;
  std::vector<TitansMemoryArgs> memories_;
};

}  // namespace mneme::engine::titans
