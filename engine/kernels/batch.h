// The rows of one pass: some tokens of each of several sequences, one sequence behind the other.
// Made once by the engine, read by every op of every layer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/core/rows.h"

namespace mneme::engine {

// Neighbouring rows of one sequence.
struct Run {
  StateSlot slot;
  int64_t position = 0;    // of the first row's token, absolute
  int64_t first_row = 0;   // of the pass
  int64_t rows = 0;        // at least 1
  bool completes = false;  // of a run cut at blocks: the last row is its block's last
};

struct Batch {
  std::vector<int32_t> tokens;     // [T]
  std::vector<int64_t> positions;  // [T], absolute
  std::vector<Run> runs;           // states are distinct; together they are all T rows, in order
  std::vector<int64_t> wanted;     // rows whose logits are wanted, ascending

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  // Keeps the vectors' memory: a batch is made for every step.
  void Clear() {
    tokens.clear();
    positions.clear();
    runs.clear();
    wanted.clear();
  }
  // Appends a run of `run_tokens`, of which the logits of the last `num_wanted` are wanted.
  void Add(StateSlot slot, int64_t position, std::span<const int32_t> run_tokens,
           int64_t num_wanted);

  // The runs cut at multiples of `block_tokens`. Element i of the result holds the i-th pieces of
  // all runs that have so many: they depend on nothing but elements before.
  std::vector<std::vector<Run>> CutAt(int64_t block_tokens) const;
  // A batch of the rows of `pieces` alone, in that order. Nothing is wanted of it.
  Batch Select(std::span<const Run> pieces) const;
};

}  // namespace mneme::engine
