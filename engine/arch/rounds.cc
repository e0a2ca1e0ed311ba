#include "engine/arch/rounds.h"

#include <algorithm>

namespace mneme::engine {

void PlanRounds(std::span<const ArchSlice> slices, int64_t block_tokens,
                std::vector<std::vector<Piece>>* rounds) {
  rounds->clear();
  int64_t row = 0;
  for (const ArchSlice& slice : slices) {
    int64_t position = slice.state->position;
    const int64_t end = position + static_cast<int64_t>(slice.tokens.size());
    for (size_t i = 0; position < end; ++i) {
      const int64_t count = std::min(end - position, block_tokens - position % block_tokens);
      if (rounds->size() <= i) rounds->emplace_back();
      (*rounds)[i].push_back({.block = slice.state->block.data(),
                              .row = row,
                              .position = position,
                              .count = count,
                              .completes = (position + count) % block_tokens == 0});
      position += count;
      row += count;
    }
  }
}

}  // namespace mneme::engine
