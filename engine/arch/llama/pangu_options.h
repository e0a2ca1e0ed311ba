// The two options that PanGu-pi adds to the Llama block (Wang et al. 2023, arXiv:2312.17276);
// absent, the block is Llama's.
//
//   series informed activation   phi = sum_i act_i(scale_i * h + bias_i), h = gate_proj z, or
//                                phi = sum_i act_i(gate_i z);  then down_proj(phi * up_proj z)
//   augmented shortcuts          x += attention(z) + sum_j up_j act(down_j z)
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/kernels/activation.h"

namespace mneme::engine::llama {

struct PanguOptions {
  // Branches of the feed-forward, n of them.
  std::vector<Activation> series = {Activation::kSilu};
  bool projected = false;  // a gate matrix for each branch, else a scale and a bias

  int64_t shortcuts = 0;  // around the attention
  int64_t shortcut_width = 0;
  bool shortcut_reads_residual = false;  // else the attention's normalised input
  bool shortcut_bias = false;
  Activation shortcut_activation = Activation::kGeluErf;
};

// From config.json; `width` is D. INVALID_ARGUMENT names the key that is unknown, of another type
// or out of range.
absl::StatusOr<PanguOptions> ParsePanguOptions(const Checkpoint& checkpoint, int64_t width);

}  // namespace mneme::engine::llama
