// How a schema's tensors are cut into snapshot chunks (docs/state_format.md, "Chunks").
//
// Ring tensors with the same sinks and window (paged ones are rings that hold every position) form
// a *ring class*: they hold the same positions, so one chunk carries a range of positions of all of
// them. Classes are numbered by first appearance in the schema. Positions are grouped on an
// absolute grid; a chunk never crosses a grid line.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/state/schema.h"

namespace mneme::engine {

struct RingClass {
  int64_t sinks = 0;
  int64_t window = 0;
  size_t position_bytes = 0;  // of one position in all tensors of the class
  int64_t group_positions =
      1;  // grid spacing: the largest power of two that keeps a group in a chunk
  std::vector<const StateTensor*> tensors;

  int64_t RowOf(int64_t position) const {
    return position < sinks ? position : sinks + (position - sinks) % window;
  }
};

struct PositionRange {
  int64_t first = 0;
  int64_t end = 0;  // exclusive
};

struct StateLayout {
  explicit StateLayout(const StateSchema& schema);  // keeps pointers into `schema`

  std::vector<const StateTensor*> fixed;
  size_t fixed_bytes = 0;
  std::vector<RingClass> rings;
};

// What a ring holds after n tokens, cut at the grid: ascending, disjoint ranges, none empty.
std::vector<PositionRange> ValidRanges(const RingClass& ring, int64_t n);

}  // namespace mneme::engine
