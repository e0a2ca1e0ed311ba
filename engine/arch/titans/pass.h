// One pass through the layers: some tokens of each of several sequences, one sequence behind the
// other, and what the parts of a layer need to work on them.
#pragma once

#include <cstdint>
#include <span>

#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"
#include "engine/state/schema.h"

namespace mneme::engine::titans {

struct Sequence {
  State* state = nullptr;
  int64_t position = 0;  // of its first token in this pass
  int64_t first = 0;     // row of that token
  int64_t count = 0;     // > 0
};

struct Pass {
  Exec& exec;
  std::span<const Sequence> sequences;
  int64_t T = 0;  // rows of all sequences
};

}  // namespace mneme::engine::titans
