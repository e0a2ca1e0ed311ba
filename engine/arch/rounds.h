// A pass cut at the ends of blocks (segments): what an architecture needs whose state moves on
// there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/arch/arch.h"

namespace mneme::engine {

// Tokens of one slice that lie in one block.
struct Piece {
  std::byte* block = nullptr;  // of the state
  int64_t row = 0;             // of the pass
  int64_t position = 0;        // of its first token
  int64_t count = 0;
  bool completes = false;  // its last token is the block's last
};

// (*rounds)[i] becomes the i-th pieces of all slices that have so many: they depend on nothing but
// rounds before. Blocks end at multiples of `block_tokens`.
void PlanRounds(std::span<const ArchSlice> slices, int64_t block_tokens,
                std::vector<std::vector<Piece>>* rounds);

}  // namespace mneme::engine
