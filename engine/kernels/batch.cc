#include "engine/kernels/batch.h"

#include <algorithm>

namespace mneme::engine {

void Batch::Add(StateSlot slot, int64_t position, std::span<const int32_t> run_tokens,
                int64_t num_wanted) {
  const auto count = static_cast<int64_t>(run_tokens.size());
  runs.push_back({.slot = slot, .position = position, .first_row = rows(), .rows = count});
  for (int64_t i = 0; i < count; ++i) {
    if (i >= count - num_wanted) wanted.push_back(rows());
    tokens.push_back(run_tokens[i]);
    positions.push_back(position + i);
  }
}

std::vector<std::vector<Run>> Batch::CutAt(int64_t block_tokens) const {
  std::vector<std::vector<Run>> cut;
  for (const Run& run : runs) {
    Run piece = run;
    for (size_t i = 0; piece.first_row < run.first_row + run.rows; ++i) {
      piece.rows = std::min(run.first_row + run.rows - piece.first_row,
                            block_tokens - piece.position % block_tokens);
      piece.completes = (piece.position + piece.rows) % block_tokens == 0;
      if (cut.size() <= i) cut.emplace_back();
      cut[i].push_back(piece);
      piece.position += piece.rows;
      piece.first_row += piece.rows;
    }
  }
  return cut;
}

Batch Batch::Select(std::span<const Run> pieces) const {
  Batch batch;
  for (const Run& piece : pieces) {
    batch.Add(piece.slot, piece.position, std::span(tokens).subspan(piece.first_row, piece.rows),
              /*num_wanted=*/0);
    batch.runs.back().completes = piece.completes;
  }
  return batch;
}

}  // namespace mneme::engine
