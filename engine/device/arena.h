// Memory for a pass's activations.
#pragma once

#include <cstdint>
#include <span>

#include "engine/core/rows.h"
#include "engine/device/memory.h"

namespace mneme::engine {

// Arrays in one block that grows to the largest pass and stays; each starts on a cache line.
class Arena {
 public:
  explicit Arena(Memory& memory) : memory_(memory) {}

  struct Part {
    Rows* rows;
    int64_t count;
    int64_t width;
  };
  // Points every part into the block, [count, width]; contents are undefined. A part without
  // elements gets no memory.
  void Reserve(std::span<const Part> parts);

 private:
  Memory& memory_;
  Block block_;
};

}  // namespace mneme::engine
