// The neural memory of a layer (arXiv:2501.00663, sections 3.1 and 4.4): short convolutions, the
// rates of its updates, reading and writing, and the way out. What the ops compute is in
// engine/kernels/{short_conv,titans_memory}.h; here are a layer's weights and tensors of the state.
#pragma once

#include <span>

#include "engine/arch/titans/config.h"
#include "engine/arch/titans/state.h"
#include "engine/arch/titans/weights.h"
#include "engine/kernels/ops.h"

namespace mneme::engine::titans {

// Rows [T, dm] of one pass. Without keys the memory is only read.
struct MemoryRows {
  Rows q;
  Rows k, v;
  Rows rates;  // [T, 3 H] as ops::TitansRates leaves them
  Rows y;      // out: M(q)
};

// One of a layer's short convolutions.
struct ShortConvolution {
  int tensor = -1;         // of the state: the rows before the pass; -1 with one tap
  Vector taps;             // [K, dm]
  bool normalize = false;  // per head
  Rows projected;          // [T, dm]
  Rows out;                // [T, dm], distinct
};

class MemoryLayer {
 public:
  // Both must outlive this.
  MemoryLayer(const Config& config, const StateMap& states) : config_(config), states_(states) {}

  void Convolve(Exec& exec, std::span<const Run> runs, int64_t layer,
                std::span<const ShortConvolution> convolutions) const;
  // In: z = gate x + bias, [T, 3 H]. Out: theta, eta, alpha.
  void Rates(Exec& exec, Rows z) const;
  // Reads y for every row, and writes the rows. Each token reads what the mode lets it see.
  void Apply(Exec& exec, std::span<const Run> runs, int64_t layer, const MemoryWeights& weights,
             const MemoryRows& rows) const;
  // out (+)= o_proj(rms(y) * silu(output_gate x)); y [T, dm] is overwritten, gate [T, dm] scratch.
  void Output(Exec& exec, const MemoryOutput& weights, Rows x, Rows y, Rows gate, Rows out,
              bool accumulate) const;

 private:
  const Config& config_;
  const StateMap& states_;
};

}  // namespace mneme::engine::titans
