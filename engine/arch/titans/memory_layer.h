// The neural memory of a layer (arXiv:2501.00663, sections 3.1 and 4.4): short convolutions, the
// rates of its updates, reading, and writing by gradient steps on fixed chunks of b positions.
//
// Gradients of a chunk are those at the weights of the last commit. In chunk mode a chunk's rows
// wait in the state and are committed together when its last token has been read; in token mode the
// running weights take every row at once. Heads are spread over threads.
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

class MemoryLayer {
 public:
  // Both must outlive this.
  MemoryLayer(const Config& config, const StateMap& states) : config_(config), states_(states) {}

  // out = silu(conv(projected)), per head divided by its norm if `normalize`; [T, dm], distinct.
  // `tensor` holds the rows before the pass and takes the last ones; -1 with one tap.
  void Convolve(const Pass& pass, int64_t layer, int tensor, const std::vector<float>& taps,
                const float* projected, bool normalize, float* out);
  // In: z = gate x + bias, [T, 3 H]. Out: theta, eta, alpha.
  void Rates(const Pass& pass, float* z) const;
  // Reads y for every row, and writes the rows. Each token reads what the mode lets it see.
  void Apply(const Pass& pass, int64_t layer, const MemoryWeights& weights, const MemoryRows& rows);
  // out (+)= o_proj(rms(y) * silu(output_gate x)); y [T, dm] is overwritten, gate [T, dm] scratch.
  void Output(const Pass& pass, const MemoryOutput& weights, const float* x, float* y, float* gate,
              float* out, bool accumulate) const;

 private:
  struct Head;
  void ChunkHead(const Pass& pass, const Head& head, const MemoryRows& rows, int worker);
  void TokenHead(const Pass& pass, const Head& head, const MemoryRows& rows, int worker);
  // Rows with their gradients into the weights of the last commit.
  void Commit(const Pass& pass, const Head& head, const Gradients& gradients, const float* rates,
              int64_t count, float* scratch) const;

  const Config& config_;
  const StateMap& states_;
  WorkerScratch scratch_;
};

}  // namespace mneme::engine::titans
